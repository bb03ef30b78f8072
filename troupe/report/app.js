// Draws a report's charts with uPlot and shows the samples of a step; everything comes from the JSON in #data.
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const $ = selector => document.querySelector(selector), all = selector => [...document.querySelectorAll(selector)];
const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const SHOWN = 20;

function short(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size === 0 || (Number.isInteger(value) && size < 1e4)) return String(value);
  if (size >= 1e6) return (value / 1e6).toFixed(1) + 'M';
  if (size >= 1e4) return (value / 1e3).toFixed(1) + 'k';
  return size < 1e-3 ? value.toExponential(1) : value.toFixed(size < 1 ? 3 : size < 100 ? 2 : 0);
}

// Elements are made of texts alone: what a model wrote is never parsed as markup.
function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

// -- what a person chose, which outlives a reload of the live page
const memory = `troupe ${location.pathname}`;
const remember = () => {
  try {
    const forms = Object.fromEntries(all('form').map(form => [form.id, Object.fromEntries(new FormData(form))]));
    const open = all('details').flatMap((one, index) => one.open ? [index] : []);
    sessionStorage.setItem(memory, JSON.stringify({forms, open, y: scrollY}));
  } catch { /* a browser that keeps nothing shows the page anew */ }
};
const remembered = (() => {
  try { return data.live && JSON.parse(sessionStorage.getItem(memory)) || {}; } catch { return {}; }
})();
function refill(form) {
  for (const [name, value] of Object.entries(remembered.forms?.[form.id] ?? {})) {
    const field = form.elements[name];
    if (field && (field.tagName !== 'SELECT' || [...field.options].some(option => option.value === value))) field.value = value;
  }
}

// -- charts
const charts = [];
const controls = $('#controls');
const chosen = name => controls?.elements[name].value ?? {x: 'step', smooth: 'auto'}[name];

function points(curve) {
  const run = data.runs[curve.run], column = run.metrics[curve.metric] ?? {lines: [], values: []};
  const x = run.x[chosen('x')].length ? run.x[chosen('x')] : run.x.step;
  // The start of the processes is in step 0, beside which the seconds of a step could not be read.
  const kept = [...column.lines.keys()].filter(i => !(curve.metric.startsWith('time/') && run.x.step[column.lines[i]] < 1));
  return [kept.map(i => x[column.lines[i]]), kept.map(i => column.values[i])];
}

function smoothed(values) {
  const reach = chosen('smooth') === 'auto' ? (values.length < 50 ? 0 : Math.max(2, Math.floor(values.length / 30))) : Math.floor(chosen('smooth') / 2);
  if (!reach) return null;
  return values.map((_, i) => {
    const near = values.slice(Math.max(i - reach, 0), i + reach + 1).filter(value => value !== null);
    return near.length ? mean(near) : null;
  });
}

function stack(table) {
  const total = table[0].map(() => 0);
  return [table[0], ...table.slice(1).map(values => values.map((value, i) => total[i] += value ?? 0))];
}

// The series of a chart: {label, values at x, style}; a smoothed curve lies over its faint raw one.
function seriesOf(chart) {
  const found = [];
  for (const curve of chart.curves) {
    const [x, y] = points(curve), stroke = color(`c${curve.color % 9}`), dash = curve.dashed ? [4, 4] : undefined;
    const over = curve.dashed || chart.stacked || curve.metric?.startsWith('eval/') ? null : smoothed(y);
    const log = value => chart.bound != null && value <= 0 ? null : value;
    found.push({table: [x, y.map(log)], curve, options: {label: curve.label || 'value', stroke: over ? stroke + '55' : stroke, width: over ? 1 : 1.8, dash}});
    if (over) found.push({table: [x, over.map(log)], options: {label: 'smoothed', stroke, width: 2, class: 'hidden', points: {show: false}}});
  }
  return found;
}

function tableOf(chart, series) {
  if (chart.table) return chart.table;
  const table = uPlot.join(series.map(one => one.table));
  return chart.bound == null ? table : [...table, table[0].map(() => chart.bound)];
}

function optionsOf(chart, series, width) {
  const raw = chart.stacked ? chart.raw : null, soft = color('soft'), grid = {stroke: color('grid'), width: 1};
  const shown = (u, value, s, i) => {
    const values = raw ? raw[s] : u.data[s];
    if (i === null || i === undefined) return short(chart.stacked ? mean(values.map(one => one ?? 0)) : values.findLast(one => one != null));
    return values[i] == null ? '–' : String(values[i]);
  };
  const bars = chart.stacked ? {paths: uPlot.paths.bars({size: [0.8, 60]}), points: {show: false}} : {};
  const made = series.map(one => ({...one.options, ...bars, fill: chart.stacked ? one.options.stroke : undefined, value: shown}));
  if (chart.bound != null) made.push({label: 'bound', stroke: color('bad'), dash: [4, 4], width: 1.5, points: {show: false}, value: shown});
  const axis = {stroke: soft, grid, ticks: grid, font: '11px system-ui, sans-serif'};
  const label = chart.table ? 'confidence' : chosen('x') === 'time' ? 'seconds' : chosen('x');
  return {
    width, height: 190, series: [{label, value: (u, value) => value == null ? (chart.stacked ? 'mean' : 'last') : String(value)}, ...made],
    scales: {x: {time: false}, y: chart.bound != null ? {distr: 3} : {range: (u, low, high) => range(chart, low, high)}},
    axes: [{...axis, size: 30, values: (u, marks) => marks.map(short)}, {...axis, size: 52, values: (u, marks) => marks.map(mark => mark === null ? '' : short(mark))}],
    cursor: {sync: chart.table ? undefined : {key: 'report', scales: ['x', null]}, drag: {x: true, y: false}, y: false},
    legend: {markers: {width: 2}},
  };
}

function range(chart, low, high) {
  if (low === null) return [0, 1];
  if (low === high) [low, high] = low ? [low - Math.abs(low) / 10, high + Math.abs(high) / 10] : [0, 1];
  const room = (high - low) * 0.06;
  return [chart.stacked || (low >= 0 && low <= high / 2) ? 0 : low - room, high + room];
}

function draw(entry) {
  const {figure, chart} = entry, place = figure.querySelector('.plot'), width = place.clientWidth;
  if (!width) return;
  entry.plot?.destroy();
  let series = chart.table ? chart.curves.map(curve => ({options: {label: curve.label, stroke: color(`c${curve.color}`), dash: curve.dashed ? [4, 4] : undefined, spanGaps: true, points: {show: !curve.dashed}}})) : seriesOf(chart);
  let table = tableOf(chart, series);
  if (chart.stacked) {
    // The highest sum first: what is painted later lies before it.
    chart.raw = [table[0], ...table.slice(1).reverse()];
    table = [table[0], ...stack(table).slice(1).reverse()];
    series = series.reverse();
  }
  entry.plot = new uPlot(optionsOf(chart, series, width), table, place);
  entry.steps = chart.table ? [] : stepsOf(chart, table[0]);
  entry.plot.over.addEventListener('click', () => openSamples(entry));
  place.querySelector('.u-legend')?.classList.toggle('single', chart.curves.length === 1 && chart.bound == null);
}

// The step of every x, which the chosen axis may show as tokens or seconds.
function stepsOf(chart, xs) {
  const known = new Map();
  for (const {run} of chart.curves) {
    const {x} = data.runs[run], axis = x[chosen('x')].length ? x[chosen('x')] : x.step;
    axis.forEach((value, i) => { if (!known.has(value)) known.set(value, x.step[i]); });
  }
  return xs.map(x => known.get(x));
}

function moveTo(entry, index) {
  const {plot, figure} = entry, last = plot.data[0].length - 1, i = Math.min(Math.max(index, 0), last);
  plot.setCursor({left: plot.valToPos(plot.data[0][i], 'x'), top: plot.over.clientHeight / 2}, true, true);
  plot.setLegend({idx: i});
  entry.index = i;
  figure.setAttribute('aria-label', [...figure.querySelectorAll('.u-series:not(.hidden)')].map(row => row.textContent).join(', '));
}

function unzoom() {
  for (const {plot} of charts) if (plot) plot.setScale('x', {min: plot.data[0][0], max: plot.data[0].at(-1)});
}

function onKey(entry, event) {
  if (!entry.plot) return;
  const now = entry.plot.cursor.idx ?? entry.index ?? entry.plot.data[0].length;
  const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: Infinity}[event.key];
  if (to !== undefined) moveTo(entry, entry.index !== undefined && event.key.startsWith('Arrow') ? entry.index + (to > now ? 1 : -1) : to);
  else if (event.key === 'Enter') openSamples(entry);
  else if (event.key === 'Escape') unzoom();
  else return;
  event.preventDefault();
}

// A chart that was in a closed part of the page has no width yet, and is drawn when it gets one.
const sizes = new ResizeObserver(changes => {
  for (const change of changes) {
    const entry = charts.find(one => one.figure === change.target.parentElement), width = change.target.clientWidth;
    if (entry && !entry.plot) draw(entry);
    else if (entry && width && entry.plot.width !== width) entry.plot.setSize({width, height: 190});
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
  for (const {figure, chart} of charts) {
    if (figure.dataset.chart) figure.hidden = !`${chart.title} ${chart.metrics.join(' ')} ${chart.hint}`.toLowerCase().includes(words);
  }
  for (const section of all('section')) {
    const figures = [...section.querySelectorAll('.charts > figure[data-chart]')];
    if (figures.length) section.hidden = figures.every(figure => figure.hidden);
  }
}

// -- samples
const filter = $('#filter');
const scores = group => group.branches.map(branch => branch.score).filter(score => typeof score === 'number');
let shown = SHOWN, histogram, perPrompt;

function fillFilter() {
  const option = (value, label = value) => new Option(label, value);
  const {set, step, prompt} = filter.elements;
  const sets = [...new Set(data.groups.map(group => group.set))];
  if (!set.length) {
    set.append(...sets.map(name => option(name, name === '' ? 'training rollouts' : `held out: ${name}`)));
    if (sets.includes('')) set.value = '';
    set.value = remembered.forms?.filter?.set ?? set.value;
  }
  const groups = data.groups.filter(group => group.set === set.value);
  const before = {step: step.value, prompt: prompt.value};
  const steps = [...new Set(groups.map(group => group.step))].sort((a, b) => a - b);
  const prompts = new Map(groups.map(group => [String(group.sample_id), group]));
  step.replaceChildren(option('', `all ${steps.length}`), ...steps.map(one => option(String(one))));
  prompt.replaceChildren(option('', `all ${prompts.size}`), ...[...prompts].map(([id, group]) => option(id, `${id}: ${String(group.prompt).replace(/\s+/g, ' ').slice(0, 60)}`)));
  step.value = steps.map(String).includes(before.step) ? before.step : '';
  prompt.value = prompts.has(before.prompt) ? before.prompt : '';
}

function wanted() {
  const {set, step, prompt, text, low, high, order} = Object.fromEntries(new FormData(filter));
  const words = text.toLowerCase();
  const found = data.groups.filter(group => group.set === set
    && (step === '' || String(group.step) === step) && (prompt === '' || String(group.sample_id) === prompt)
    && (!words || [group.prompt, ...group.branches.map(branch => branch.text)].some(one => String(one).toLowerCase().includes(words)))
    && (low === '' || scores(group).some(score => score >= Number(low))) && (high === '' || scores(group).some(score => score <= Number(high))));
  const level = group => scores(group).length ? mean(scores(group)) : -Infinity;
  const spread = group => scores(group).length ? Math.max(...scores(group)) - Math.min(...scores(group)) : 0;
  const by = {newest: group => -group.step, oldest: group => group.step, best: group => -level(group), worst: level, spread: group => -spread(group)}[order];
  return found.sort((a, b) => by(a) - by(b) || 0);
}

function branchOf(branch, centre) {
  const score = typeof branch.score === 'number' ? branch.score : null, advantage = score === null || centre === null ? null : score - centre;
  const facts = {...branch.parts, tokens: branch.num_tokens, 'ended by': branch.finish_reason};
  const head = element('header', {}, element('b', {textContent: score === null ? 'no score' : `score ${short(score)}`}));
  if (advantage !== null) head.append(element('span', {textContent: `advantage ${advantage > 0 ? '+' : ''}${short(advantage)}`}));
  for (const [name, value] of Object.entries(facts)) {
    if (value !== null && value !== undefined) head.append(element('span', {textContent: `${name} ${typeof value === 'number' ? short(value) : value}`}));
  }
  const text = String(branch.text ?? ''), kind = !advantage ? '' : advantage > 0 ? ' above' : ' below';
  return element('div', {className: `answer${kind}`}, head, element('div', {className: text.trim() ? 'text' : 'text soft', textContent: text.trim() ? text : '(empty)'}));
}

function groupCard(group) {
  const known = scores(group), centre = known.length ? mean(known) : null, low = Math.min(...known), high = Math.max(...known);
  const chips = element('span', {className: 'chips', title: 'scores of the answers'}, ...group.branches.map(({score}) => {
    const chip = element('i');
    chip.style.opacity = typeof score !== 'number' ? 0.1 : 0.15 + 0.85 * (high > low ? (score - low) / (high - low) : score > 0 ? 1 : 0);
    return chip;
  }));
  const prompt = String(group.prompt ?? ''), begins = prompt.replace(/\s+/g, ' ').slice(0, 110);
  const summary = element('summary', {}, begins, element('span', {className: 'soft', textContent: ` · step ${group.step}${centre === null ? '' : ` · mean ${short(centre)}`}`}), chips);
  const card = element('details', {className: 'card group'}, summary);
  card.addEventListener('toggle', () => {
    if (!card.open || card.children.length > 1) return;
    const about = element('div', {className: 'id'}, element('span', {textContent: String(group.sample_id ?? '')}));
    if (group.gold !== null && group.gold !== undefined) about.append(element('span', {textContent: `gold: ${group.gold}`}));
    const answers = element('div', {className: 'branches'}, ...group.branches.map(branch => branchOf(branch, group.branches.length > 1 ? centre : null)));
    card.append(about, element('div', {className: 'text prompt', textContent: prompt}), answers);
  });
  return card;
}

function small(figure, x, y, xLabel, yLabel, paths) {
  const place = figure.querySelector('.plot'), value = (u, number) => number == null ? '–' : String(number);
  const axis = {stroke: color('soft'), grid: {stroke: color('grid')}, ticks: {stroke: color('grid')}, font: '11px system-ui, sans-serif', values: (u, marks) => marks.map(short)};
  return new uPlot({
    width: place.clientWidth || 300, height: 170, scales: {x: {time: false}, y: {range: (u, low, high) => range({}, Math.min(low ?? 0, 0), high)}},
    series: [{label: xLabel, value}, {label: yLabel, value, stroke: color('c0'), fill: paths ? color('c0') : undefined, paths, points: {show: !paths}}],
    axes: [{...axis, size: 30}, {...axis, size: 52}],
  }, [x, y], place);
}

function drawSmall(groups) {
  histogram?.destroy();
  perPrompt?.destroy();
  histogram = perPrompt = undefined;
  const values = groups.flatMap(scores), low = Math.min(...values), high = Math.max(...values);
  $('#histogram').hidden = !values.length;
  if (values.length) {
    const bins = 20, width = (high - low) / bins || 1, counts = Array(high > low ? bins : 1).fill(0);
    for (const value of values) counts[Math.min(Math.floor((value - low) / width), counts.length - 1)]++;
    const centres = counts.map((_, i) => high > low ? low + (i + 0.5) * width : low);
    histogram = small($('#histogram'), centres, counts, 'reward', 'answers', uPlot.paths.bars({size: [0.9, 60]}));
  }
  const {prompt} = filter.elements, figure = $('#per-prompt');
  figure.hidden = prompt.value === '';
  if (figure.hidden) return;
  const at = new Map();
  for (const group of data.groups) {
    if (String(group.sample_id) === prompt.value && scores(group).length) at.set(group.step, [...at.get(group.step) ?? [], ...scores(group)]);
  }
  const steps = [...at.keys()].sort((a, b) => a - b);
  perPrompt = small(figure, steps, steps.map(step => mean(at.get(step))), 'step', 'mean reward');
}

function showSamples() {
  const groups = wanted();
  $('#groups').replaceChildren(...groups.slice(0, shown).map(groupCard));
  $('#more').hidden = groups.length <= shown;
  $('#more').textContent = `More (${groups.length - shown} groups)`;
  const inFiles = Number($('#samples-count').dataset.inFiles), left = inFiles - data.groups.length;
  $('#samples-count').textContent = `${groups.length} groups chosen of ${data.groups.length}.`
    + (left > 0 ? ` A page has room for these; rollouts.jsonl and answers.jsonl have ${left} more.` : '');
  drawSmall(groups);
}

// From a point of a curve to the samples of its step, or of the step nearest to it that has some.
function openSamples(entry) {
  const step = entry.steps?.[entry.index ?? entry.plot.cursor.idx], metric = entry.chart.metrics[0];
  if (step === undefined || !filter) return;
  const sets = new Set(data.groups.map(group => group.set)), heldOut = metric.startsWith('eval/') ? [...sets].find(set => set && metric.startsWith(`eval/${set}/`)) : undefined;
  filter.elements.set.value = heldOut ?? (sets.has('') ? '' : [...sets][0]);
  fillFilter();
  const steps = [...filter.elements.step.options].slice(1).map(option => Number(option.value));
  filter.elements.step.value = String(steps.reduce((best, one) => Math.abs(one - step) < Math.abs(best - step) ? one : best, steps[0]));
  filter.elements.prompt.value = '';
  shown = SHOWN;
  showSamples();
  $('#samples').scrollIntoView({behavior: 'instant'});
}

// -- the live page: the same report, loaded again when a file of the run has changed
function follow() {
  const told = $('.live p');
  $('.live select').addEventListener('change', event => { location.href = event.target.value; });
  let read = new Date().toLocaleTimeString(), touched = 0;
  for (const kind of ['pointermove', 'keydown', 'wheel', 'touchmove']) addEventListener(kind, () => { touched = Date.now(); }, {passive: true});
  setInterval(async () => {
    if (document.hidden || Date.now() - touched < 2000 || document.activeElement?.matches('input, select')) return;
    try {
      const answer = await fetch(`${location.pathname}?since=${encodeURIComponent(data.live.since)}`);
      if (answer.status === 200) location.reload();
      else if (answer.status !== 204) throw new Error();
      read = new Date().toLocaleTimeString();
      told.textContent = `read ${read}`;
      told.className = '';
    } catch {
      told.textContent = `not reached since ${read}`;
      told.className = 'failed';
    }
  }, 3000);
}

// -- the beginning
for (const section of all('section')) $('nav').append(element('a', {href: `#${section.id}`, textContent: section.querySelector('h2').textContent}));
for (const figure of all('figure[data-chart]')) addChart(figure, JSON.parse(figure.dataset.chart));
if (controls) {
  if (!data.runs.some(run => run.x.tokens.length)) controls.elements.x.querySelector('[value=tokens]').remove();
  refill(controls);
  find();
  controls.addEventListener('submit', event => event.preventDefault());
  controls.addEventListener('input', event => event.target.name === 'find' ? find() : charts.forEach(draw));
  $('#unzoom').addEventListener('click', unzoom);
}
if (filter) {
  fillFilter();
  refill(filter);
  showSamples();
  filter.addEventListener('submit', event => event.preventDefault());
  filter.addEventListener('input', event => {
    shown = SHOWN;
    if (event.target.name === 'set') fillFilter();
    showSamples();
  });
  $('#more').addEventListener('click', () => { shown += SHOWN; showSamples(); });
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { charts.forEach(draw); if (filter) showSamples(); });
addEventListener('pagehide', remember);
if (data.live) {
  for (const index of remembered.open ?? []) { const one = all('details')[index]; if (one) one.open = true; }
  scrollTo({top: remembered.y ?? 0, behavior: 'instant'});
  follow();
}
