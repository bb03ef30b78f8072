// Draws a report's charts with uPlot and shows the samples of a step; everything comes from the JSON in #data.
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = selector => document.querySelector(selector), all = selector => [...document.querySelectorAll(selector)];
const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const mean = values => values.reduce((sum, value) => sum + (value ?? 0), 0) / values.length;
const least = values => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = values => values.reduce((a, b) => Math.max(a, b), -Infinity);
const compact = new Intl.NumberFormat('en', {notation: 'compact', maximumSignificantDigits: 4});
const HEIGHT = 190, SHOWN = 20;

function short(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size && size < 1e-3) return value.toExponential(1).replace('.0e', 'e');
  return size < 1e4 ? String(Number(value.toPrecision(4))) : compact.format(value);
}

// A mark of an axis, with the digits that tell it from the next one.
function mark(value, increment) {
  if (value === null || Math.abs(value) >= 1e4) return value === null ? '' : compact.format(value);
  const digits = increment.toFixed(12).replace(/0+$/, '').split('.')[1].length, size = Math.abs(value);
  if (size === 0 || size >= 1e-3) return value.toFixed(size ? Math.min(digits, 6) : 0);
  return value.toExponential(Math.max(digits + Math.floor(Math.log10(size)), 0));
}

// Elements are made of texts alone: what a model wrote is never parsed as markup.
function element(tag, attributes, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

// -- charts

const charts = [], controls = $('#controls');
const chosen = name => controls?.elements[name].value ?? {x: 'step', smooth: 'auto'}[name];
const axisOf = run => run.x[chosen('x')].length ? run.x[chosen('x')] : run.x.step;

function points(curve) {
  const run = data.runs[curve.run], {lines, values} = run.metrics[curve.metric] ?? {lines: [], values: []};
  // Step 0 holds the start of the processes, beside which the seconds of a step could not be read.
  const kept = [...lines.keys()].filter(i => run.x.step[lines[i]] > 0 || !curve.metric.startsWith('time/'));
  return [kept.map(i => axisOf(run)[lines[i]]), kept.map(i => values[i])];
}

// The running mean; null where the curve is short, or none is wanted.
function smoothed(values) {
  const auto = values.length < 50 ? 0 : Math.max(2, Math.floor(values.length / 30));
  const reach = chosen('smooth') === 'auto' ? auto : Math.floor(chosen('smooth') / 2);
  return reach ? values.map((_, i) => {
    const near = values.slice(Math.max(i - reach, 0), i + reach + 1).filter(value => value !== null);
    return near.length ? mean(near) : null;
  }) : null;
}

// The series of a chart as [table of x and y, options]; a smoothed curve is drawn over its faint raw one.
function seriesOf(chart) {
  return chart.curves.flatMap(curve => {
    const stroke = color(`c${curve.color % 9}`), dash = curve.dashed ? [4, 4] : undefined;
    const options = {label: curve.label || 'value', stroke, dash, width: 1.8};
    if (curve.bars) {
      Object.assign(options, {fill: stroke, paths: uPlot.paths.bars({size: [0.8, 60]}), points: {show: false}});
    }
    if (chart.table) return [[null, {...options, spanGaps: true}]];
    // A logarithmic axis has no 0.
    const [x, values] = points(curve), y = values.map(value => chart.bound != null && value <= 0 ? null : value);
    const over = curve.dashed || curve.bars || curve.metric.startsWith('eval/') ? null : smoothed(y);
    const raw = [[x, y], over ? {...options, stroke: `${stroke}55`, width: 1} : options];
    return over ? [raw, [[x, over], {...options, class: 'hidden', points: {show: false}}]] : [raw];
  });
}

function stacked(table) {
  const sums = table[0].map(() => 0);
  return [table[0], ...table.slice(1).map(values => values.map((value, i) => sums[i] += value ?? 0))];
}

function range(chart, low, high) {
  if (low === null) return [0, 1];
  if (low === high) [low, high] = low ? [low - Math.abs(low) / 10, high + Math.abs(high) / 10] : [0, 1];
  const room = (high - low) * 0.06, fromZero = chart.stacked || (low >= 0 && low <= high / 2);
  return [fromZero ? 0 : low - room, high + room];
}

// Bars are half as wide again as their place at both ends.
function acrossOf(chart, count, low, high) {
  const room = chart.curves.some(curve => curve.bars) ? (high - low) / Math.max(count - 1, 1) / 2 : 0;
  return low === high ? [low - 1, high + 1] : [low - room, high + room];
}

// `exact` are the numbers of the legend; those that are drawn may be stacked.
function optionsOf(chart, options, exact, width) {
  const resting = chart.stacked ? 'mean' : 'last', isLog = chart.bound != null;
  const value = (u, _, s, i) => {
    if (i == null) return short(chart.stacked ? mean(exact[s]) : exact[s].findLast(one => one != null));
    return exact[s][i] == null ? '–' : String(exact[s][i]);
  };
  const grid = {stroke: color('grid'), width: 1};
  const axis = {stroke: color('soft'), grid, ticks: grid, font: '11px system-ui, sans-serif'};
  const marks = (u, values, axis, space, increment) => values.map(one => mark(one, increment));
  const label = chart.x ?? (chosen('x') === 'time' ? 'seconds' : chosen('x'));
  return {
    width, height: HEIGHT,
    series: [{label, value: (u, at) => at == null ? resting : String(at)}, ...options.map(one => ({...one, value}))],
    scales: {
      x: {time: false, range: (u, low, high) => acrossOf(chart, exact[0].length, low, high)},
      y: isLog ? {distr: 3} : {range: (u, low, high) => range(chart, low, high)},
    },
    axes: [{...axis, size: 30, values: marks},
      {...axis, size: room, values: isLog ? (u, values) => values.map(one => one === null ? '' : short(one)) : marks}],
    cursor: {sync: chart.x ? undefined : {key: 'report', scales: ['x', null]}, drag: {x: true, y: false}, y: false},
  };
}

function draw(entry) {
  const {figure, chart} = entry, place = figure.querySelector('.plot'), width = place.clientWidth;
  if (!width) return;
  const series = seriesOf(chart), options = series.map(one => one[1]);
  let exact = chart.table ?? uPlot.join(series.map(one => one[0])), table = exact;
  if (chart.bound != null) {
    table = exact = [...exact, exact[0].map(() => chart.bound)];
    options.push({label: 'bound', stroke: color('bad'), dash: [4, 4], width: 1.5, points: {show: false}});
  }
  if (chart.stacked) {
    // The highest sum first: what is painted later covers it.
    table = [exact[0], ...stacked(exact).slice(1).reverse()];
    exact = [exact[0], ...exact.slice(1).reverse()];
    options.reverse();
  }
  entry.plot?.destroy();
  entry.plot = new uPlot(optionsOf(chart, options, exact, width), table, place);
  entry.plot.over.addEventListener('click', () => openSamples(entry));
  const named = options.filter(one => one.class !== 'hidden').length > 1 || chart.x;
  place.querySelector('.u-legend').classList.toggle('single', !named);
}

function moveTo(entry, index) {
  const {plot, figure} = entry, i = Math.min(Math.max(index, 0), plot.data[0].length - 1);
  plot.setCursor({left: plot.valToPos(plot.data[0][i], 'x'), top: plot.over.clientHeight / 2}, true, true);
  plot.setLegend({idx: i});
  entry.index = i;
  const rows = [...figure.querySelectorAll('.u-series:not(.hidden)')];
  figure.setAttribute('aria-label', rows.map(row => row.textContent).join(', '));
}

function unzoom() {
  for (const {plot} of charts) plot?.setScale('x', {min: plot.data[0][0], max: plot.data[0].at(-1)});
}

function onKey(entry, event) {
  if (!entry.plot) return;
  const now = entry.index ?? entry.plot.cursor.idx ?? entry.plot.data[0].length;
  const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: Infinity}[event.key];
  if (to !== undefined) moveTo(entry, to);
  else if (event.key === 'Enter') openSamples(entry);
  else if (event.key === 'Escape') unzoom();
  else return;
  event.preventDefault();
}

// A chart in a closed part of the page has no width yet, and is drawn when it gets one.
// As wide as the longest mark of the axis.
function room(u, values) {
  return Math.max(56, 18 + 6.5 * Math.max(0, ...(values ?? []).map(one => String(one).length)));
}

const sizes = new ResizeObserver(changes => {
  for (const {target} of changes) {
    const entry = charts.find(one => one.figure === target.parentElement), width = target.clientWidth;
    if (!entry.plot) draw(entry);
    else if (width && entry.plot.width !== width) entry.plot.setSize({width, height: HEIGHT});
  }
});

function addChart(figure, chart) {
  const entry = {figure, chart};
  charts.push(entry);
  figure.addEventListener('keydown', event => onKey(entry, event));
  figure.addEventListener('pointermove', () => { entry.index = undefined; });
  sizes.observe(figure.querySelector('.plot'));
  return entry;
}

function find() {
  const words = chosen('find').toLowerCase();
  for (const {figure, chart} of charts.filter(one => one.figure.dataset.chart)) {
    figure.hidden = ![chart.title, chart.hint, ...chart.metrics].join(' ').toLowerCase().includes(words);
  }
  for (const section of all('section')) {
    const figures = [...section.querySelectorAll('.charts > figure[data-chart]')];
    if (figures.length) section.hidden = figures.every(figure => figure.hidden);
  }
}

// -- samples

const filter = $('#filter');
const written = branch => branch.turns?.map(turn => turn.text ?? turn.tokens.join('')).join('') ?? branch.text;
const scores = group => group.branches.map(branch => branch.score).filter(score => typeof score === 'number');
let shown = SHOWN, histogram, perPrompt;

function fillFilter() {
  const {set, step, prompt} = filter.elements, before = [step.value, prompt.value];
  const groups = data.groups.filter(group => group.set === set.value);
  const steps = [...new Set(groups.map(group => group.step))].sort((a, b) => a - b);
  const prompts = new Map(groups.map(group => [String(group.sample_id), String(group.prompt).replace(/\s+/g, ' ')]));
  step.replaceChildren(new Option(`all ${steps.length}`, ''), ...steps.map(one => new Option(one, one)));
  prompt.replaceChildren(new Option(`all ${prompts.size}`, ''),
    ...[...prompts].map(([id, text]) => new Option(`${id}: ${text.slice(0, 60)}`, id)));
  step.value = steps.map(String).includes(before[0]) ? before[0] : '';
  prompt.value = prompts.has(before[1]) ? before[1] : '';
}

function chosenGroups() {
  const {set, step, prompt, text, low, high, order} = Object.fromEntries(new FormData(filter));
  const words = text.toLowerCase(), texts = group => [group.prompt, ...group.branches.map(written)];
  const has = group => texts(group).some(one => String(one).toLowerCase().includes(words));
  const found = data.groups.filter(group => group.set === set
    && (step === '' || String(group.step) === step) && (prompt === '' || String(group.sample_id) === prompt)
    && (text === '' || has(group)) && (low === '' || scores(group).some(score => score >= Number(low)))
    && (high === '' || scores(group).some(score => score <= Number(high))));
  const level = group => scores(group).length ? mean(scores(group)) : -Infinity;
  const spread = group => most(scores(group)) - least(scores(group));
  const key = {newest: group => -group.step, oldest: group => group.step, best: group => -level(group), worst: level,
    spread: group => -spread(group)}[order];
  return found.sort((a, b) => key(a) - key(b) || 0);
}

// A token with its probability as its title, marked the more the less probable it was.
function tokenOf(text, logprob) {
  const made = element('span', {textContent: text, title: `probability ${short(Math.exp(logprob))}`});
  if (logprob < -0.1) made.style.setProperty('--doubt', `${Math.min(-10 * logprob, 40)}%`);
  return made;
}

function turnOf(turn) {
  const parts = turn.tokens?.map((text, i) => tokenOf(text, turn.logprobs[i])) ?? [turn.text];
  const body = element('div', {className: 'text'}, ...parts), pointedAt = element('span');
  for (const kind of ['click', 'pointerover']) {
    body.addEventListener(kind, event => { pointedAt.textContent = event.target.title; });
  }
  const mask = element('span', {textContent: turn.trained ? 'trained' : 'read, not trained'});
  const head = element('header', {}, element('b', {textContent: turn.role}), mask, pointedAt);
  return element('div', {className: turn.trained ? 'turn' : 'turn read'}, head, body);
}

function saidIn(branch) {
  if (branch.turns) return element('div', {className: 'turns'}, ...branch.turns.map(turnOf));
  const text = String(branch.text ?? ''), isEmpty = !text.trim();
  return element('div', {className: isEmpty ? 'text soft' : 'text', textContent: isEmpty ? '(empty)' : text});
}

// `weights` are those of the parts whose sum is the score.
function branchOf(branch, centre, weights) {
  const score = typeof branch.score === 'number' ? branch.score : null, parts = branch.parts ?? {};
  const advantage = score === null || centre === null ? null : score - centre;
  const summed = Object.keys(weights).filter(name => typeof parts[name] === 'number');
  const sum = summed.map(name => `${weights[name] === 1 ? '' : `${weights[name]} × `}${name} ${short(parts[name])}`);
  const others = Object.entries(parts).filter(([name]) => !summed.includes(name));
  const facts = {advantage, ...Object.fromEntries(others), tokens: branch.num_tokens, 'ended by': branch.finish_reason};
  const label = score === null ? 'no score' : `score ${short(score)}`;
  const head = element('header', {}, element('b', {textContent: [label, sum.join(' + ')].filter(Boolean).join(' = ')}));
  for (const [name, value] of Object.entries(facts).filter(fact => fact[1] != null)) {
    head.append(element('span', {textContent: `${name} ${typeof value === 'number' ? short(value) : value}`}));
  }
  const edge = !advantage ? '' : advantage > 0 ? 'above' : 'below';
  return element('div', {className: `answer ${edge}`}, head, saidIn(branch));
}

function groupCard(group) {
  const known = scores(group), prompt = String(group.prompt ?? ''), centre = known.length > 1 ? mean(known) : null;
  const facts = ` · step ${group.step} · ${known.length ? `reward ${short(mean(known))}` : 'no reward'}`
    + (known.length > 1 ? `: ${known.map(short).join('  ')}` : '');
  const begins = prompt.replace(/\s+/g, ' ').slice(0, 110);
  const more = element('span', {className: 'soft', textContent: facts});
  const card = element('details', {className: 'card group'}, element('summary', {}, begins, more));
  card.addEventListener('toggle', () => {
    if (!card.open || card.children.length > 1) return;
    const weights = group.set ? {} : data.weights;
    const about = [group.sample_id ?? '', ...(group.gold == null ? [] : [`gold: ${group.gold}`])];
    card.append(element('div', {className: 'id'}, ...about.map(text => element('span', {textContent: text}))),
      element('div', {className: 'text prompt', textContent: prompt}),
      element('div', {className: 'branches'}, ...group.branches.map(branch => branchOf(branch, centre, weights))));
  });
  return card;
}

function binned(values, bins = 20) {
  const low = least(values), high = most(values), width = (high - low) / bins;
  if (!(width > 0)) return [[low], [values.length]];
  const counts = Array(bins).fill(0);
  for (const value of values) counts[Math.min(Math.floor((value - low) / width), bins - 1)]++;
  return [counts.map((_, i) => low + (i + 0.5) * width), counts];
}

// The mean reward of a prompt at every step that has kept answers to it.
function overSteps(prompt) {
  const mine = data.groups.filter(group => String(group.sample_id) === prompt && scores(group).length);
  const steps = [...new Set(mine.map(group => group.step))].sort((a, b) => a - b);
  return [steps, steps.map(step => mean(mine.filter(group => group.step === step).flatMap(scores)))];
}

function showSamples() {
  const groups = chosenGroups(), left = Number($('#samples-count').dataset.inFiles) - data.groups.length;
  $('#groups').replaceChildren(...groups.slice(0, shown).map(groupCard));
  $('#more').hidden = groups.length <= shown;
  $('#more').textContent = `More (${groups.length - shown} groups)`;
  $('#samples-count').textContent = `${groups.length} groups chosen of ${data.groups.length}.`
    + (left > 0 ? ` A page has room for these; rollouts.jsonl and answers.jsonl have ${left} more.` : '');
  const values = groups.flatMap(scores), prompt = filter.elements.prompt.value;
  const update = (entry, table, isShown) => {
    entry.figure.hidden = !isShown;
    entry.chart.table = table;
    draw(entry);
  };
  update(histogram, binned(values), values.length > 0);
  update(perPrompt, overSteps(prompt), prompt !== '');
}

// The samples of a point's step, or of the step nearest to it that has some.
function openSamples(entry) {
  const index = entry.index ?? entry.plot.cursor.idx, at = entry.plot.data[0][index];
  if (!filter || entry.chart.x || at === undefined) return;
  const run = data.runs[entry.chart.curves[0].run], step = run.x.step[axisOf(run).indexOf(at)];
  const {set} = filter.elements, sets = [...set.options].map(option => option.value);
  const heldOut = sets.find(name => name && entry.chart.metrics[0].startsWith(`eval/${name}/`));
  set.value = heldOut ?? (sets.includes('') ? '' : sets[0]);
  fillFilter();
  const steps = [...filter.elements.step.options].slice(1).map(option => option.value);
  filter.elements.step.value = steps.reduce((best, one) => Math.abs(one - step) < Math.abs(best - step) ? one : best);
  filter.elements.prompt.value = '';
  shown = SHOWN;
  showSamples();
  $('#samples').scrollIntoView({behavior: 'instant'});
}

// -- the live page: the same report, loaded again when a file of the run has changed

const memory = `troupe ${location.pathname}`;
const remembered = data.live ? JSON.parse(sessionStorage.getItem(memory) ?? '{}') : {};

function remember() {
  const forms = Object.fromEntries(all('form').map(form => [form.id, Object.fromEntries(new FormData(form))]));
  const open = all('details').flatMap((one, index) => one.open ? [index] : []);
  sessionStorage.setItem(memory, JSON.stringify({forms, open, y: scrollY}));
}

function refill(form) {
  for (const [name, value] of Object.entries(remembered.forms?.[form.id] ?? {})) {
    const field = form.elements[name];
    if (!field.options || [...field.options].some(option => option.value === value)) field.value = value;
    if (name === 'set') fillFilter();
  }
}

function follow() {
  const status = $('.live p');
  let read = new Date().toLocaleTimeString(), touched = 0;
  for (const kind of ['pointermove', 'keydown', 'wheel', 'touchmove']) {
    addEventListener(kind, () => { touched = Date.now(); }, {passive: true});
  }
  $('.live select').addEventListener('change', event => { location.href = event.target.value; });
  addEventListener('pagehide', remember);
  for (const index of remembered.open ?? []) all('details')[index]?.setAttribute('open', '');
  scrollTo({top: remembered.y ?? 0, behavior: 'instant'});
  setInterval(async () => {
    if (document.hidden || Date.now() - touched < 2000 || document.activeElement.matches('input, select')) return;
    try {
      const answer = await fetch(`${location.pathname}?since=${encodeURIComponent(data.live.since)}`);
      if (answer.status === 200) location.reload();
      else if (answer.status !== 204) throw new Error(answer.statusText);
      read = new Date().toLocaleTimeString();
      status.replaceChildren(`read ${read}`);
    } catch {
      status.replaceChildren(element('span', {className: 'failed', textContent: `not reached since ${read}`}));
    }
  }, 3000);
}

// -- the beginning

for (const section of all('section')) {
  $('nav').append(element('a', {href: `#${section.id}`, textContent: section.querySelector('h2').textContent}));
}
for (const figure of all('figure[data-chart]')) addChart(figure, JSON.parse(figure.dataset.chart));
for (const form of all('form')) form.addEventListener('submit', event => event.preventDefault());
if (controls) {
  if (!data.runs.some(run => run.x.tokens.length)) controls.elements.x.querySelector('[value=tokens]').remove();
  refill(controls);
  find();
  controls.addEventListener('input', event => event.target.name === 'find' ? find() : charts.forEach(draw));
  $('#unzoom').addEventListener('click', unzoom);
}
if (filter) {
  const sets = [...new Set(data.groups.map(group => group.set))].sort();
  filter.elements.set.append(...sets.map(set => new Option(set ? `held out: ${set}` : 'training rollouts', set)));
  histogram = addChart($('#histogram'), {x: 'reward', metrics: [], curves: [{label: 'answers', color: 0, bars: true}]});
  perPrompt = addChart($('#per-prompt'), {x: 'step', metrics: [], curves: [{label: 'mean reward', color: 0}]});
  fillFilter();
  refill(filter);
  showSamples();
  filter.addEventListener('input', event => {
    shown = SHOWN;
    if (event.target.name === 'set') fillFilter();
    showSamples();
  });
  $('#more').addEventListener('click', () => { shown += SHOWN; showSamples(); });
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => charts.forEach(draw));
if (data.live) follow();
