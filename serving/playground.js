// The playground's script. It speaks to the public API alone; docs/playground.md says what the page does.
const $ = id => document.getElementById(id);
const KEY = 'troupe-token', FORM = 'troupe-form';
const KEPT = ['prompt', 'system', 'temperature', 'top_p', 'max_tokens', 'seed', 'form_of_prompt', 'gold'];   // over a reload
const EXAMPLES = ['Explain in two sentences why the sky is blue.', 'Write a haiku about the sea.',
  'Tom has 3 pens and buys 5 more. How many pens now?'].map(prompt => ({prompt}));
let cards = {};        // model name -> its metadata
let examples = [];     // prompts to begin with
let running = null;    // what stops the answers on their way

function make(tag, fields = {}, ...children) {
  const element = Object.assign(document.createElement(tag), fields);
  element.append(...children);
  return element;
}

// -- the API ----------------------------------------------------------------------------------------------------

// Handed over behind the #, which browsers keep to themselves; it leaves the address bar at once.
const handed = new URLSearchParams(location.hash.slice(1)).get('token');
if (handed) {
  sessionStorage.setItem(KEY, handed);
  history.replaceState(null, '', location.pathname);
}

async function call(path, body, signal) {
  const headers = {'Content-Type': 'application/json'};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = 'Bearer ' + token;
  const response = await fetch(path, body ? {method: 'POST', headers, body: JSON.stringify(body), signal} : {headers, signal});
  if (response.ok) return response;
  if (response.status === 401) { askToken(); throw new Error('The token is missing or wrong.', {cause: 401}); }
  let said = '';
  try { const answer = await response.json(); said = answer.error?.message ?? answer.message ?? answer.detail; } catch {}
  throw new Error(typeof said === 'string' && said ? said : `The server answered ${response.status} ${response.statusText}.`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const {value, done} = await reader.read();
    held += done ? '\n\n' : value;
    const parts = held.split(/\r?\n\r?\n/);
    held = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter(line => line.startsWith('data:')).map(line => line.slice(5)).join('\n').trim();
      if (data === '[DONE]') return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message ?? String(event.error));
      yield event;
    }
    if (done) throw new Error('The answer broke off: the connection ended before the server said that it was done.');
  }
}

// -- an answer ----------------------------------------------------------------------------------------------------

class Answer {
  constructor(place) {
    this.place = place;
    this.select = make('select', {ariaLabel: place ? 'Model on the right' : 'Model on the left'});
    this.told = make('div', {className: 'told', ariaLive: 'polite'});
    this.text = make('div', {className: 'text'});
    this.earlier = make('div');
    this.copy = make('button', {type: 'button', textContent: 'Copy', ariaLabel: 'Copy the answer', disabled: true, onclick: () => this.copied()});
    this.turns = [];
    this.error = make('p', {className: 'error', hidden: true});
    this.number = make('b');
    this.better = make('span', {className: 'better'});
    this.reward = make('div', {className: 'reward', hidden: true}, make('span', {className: 'soft', textContent: 'reward'}), this.number, this.better);
    const head = make('div', {className: 'head'}, this.select, this.copy);
    this.card = make('section', {className: 'card'}, head, this.earlier, this.told, this.text, this.error, this.reward);
    this.clear();
    this.text.append(make('span', {className: 'empty', textContent: place ? 'The other answer, beside it.' : 'The answer appears here.'}));
  }

  clear() {
    this.content = ''; this.tokens = 0; this.surprise = 0; this.pending = []; this.score = null; this.reason = '';
    this.decoder = new TextDecoder();
    this.shown = make('div', {className: 'shown'});
    this.text.replaceChildren(this.shown); this.told.replaceChildren();
    this.copy.disabled = true;
    this.earlier.replaceChildren(...this.turns.map(turn => turn.shown ?? make('div', {className: `turn ${turn.role}`},
      turn.role === 'assistant' && $('formatted').checked ? make('div', {className: 'shown'}, ...formatted(turn.content)) : turn.content)));
    this.error.hidden = this.reward.hidden = true; this.better.textContent = '';
  }

  fail(error) {
    this.error.textContent = error.message;
    this.error.hidden = false;
  }

  async copied() {
    await navigator.clipboard.writeText(this.content);
    this.copy.textContent = 'Copied';
    setTimeout(() => { this.copy.textContent = 'Copy'; }, 1500);
  }

  async run(asked, signal) {
    if (!asked.follow) this.turns = [];
    this.clear();
    this.card.classList.add('busy');
    this.started = performance.now();
    this.first = null;
    try {
      const model = this.select.value;
      const chat = asked.form === 'auto' ? cards[model]?.chat !== false : asked.form === 'chat';
      const said = {role: 'user', content: asked.prompt};
      const turns = this.turns.map(({role, content}) => ({role, content}));
      this.prompt = chat ? [...asked.system, ...turns, said] : asked.prompt;
      const body = chat ? {messages: this.prompt, logprobs: true, top_logprobs: 5} : {prompt: asked.prompt, logprobs: 5};
      if (this.turns.length) this.earlier.append(make('div', {className: 'turn user', textContent: asked.prompt}));
      const response = await call(chat ? '/v1/chat/completions' : '/v1/completions',
        {model, stream: true, stream_options: {include_usage: true}, ...asked.sampling, ...body}, signal);
      for await (const event of events(response)) this.take(event);
      if (chat) this.turns = [...this.turns, said, {role: 'assistant', content: this.content}];
    } catch (error) {
      if (signal.aborted) this.reason = 'stopped'; else this.fail(error);
    }
    this.card.classList.remove('busy');
    this.tell(true);
  }

  take(event) {
    if (event.usage) this.counted = event.usage.completion_tokens;
    const choice = event.choices?.[0];
    if (!choice) return;
    const piece = choice.delta ? choice.delta.content ?? '' : choice.text ?? '';
    const tokens = tokensOf(choice.logprobs);
    if (this.first === null && (piece || tokens.length)) this.first = performance.now();
    this.content += piece;
    let rest = piece;
    for (const token of tokens) {
      this.tokens += 1;
      this.surprise -= token.logprob;
      this.pending.push(token);
      const text = token.bytes ? this.decoder.decode(Uint8Array.from(token.bytes), {stream: true}) : token.token;
      if (!text || text.endsWith('\ufffd')) continue;       // part of a character: shown with the token that completes it
      const shown = rest.startsWith(text) ? text : rest;
      this.show(shown || token.token, !shown);
      rest = rest.slice(shown.length);
    }
    if (rest) this.show(rest, false);
    if (choice.finish_reason) {
      this.reason = choice.finish_reason;
      if (this.pending.length) this.show(this.pending.map(token => token.token).join(''), true);
    }
    this.tell(false);
  }

  show(text, special) {
    const tokens = this.pending;
    this.pending = [];
    if (!tokens.length) { this.text.append(text); return; }
    const span = make('span', {className: special ? 't special' : 't', textContent: text});
    span.style.setProperty('--doubt', String(1 - Math.exp(tokens.reduce((sum, token) => sum + token.logprob, 0))));
    span.tokens = tokens;
    this.text.append(span);
  }

  tell(ended) {
    const seconds = (performance.now() - this.started) / 1000, count = ended && this.counted || this.tokens;
    const parts = [];
    if (count) parts.push(`${count} token${count === 1 ? '' : 's'}`);
    if (this.first !== null) parts.push(`first after ${Math.round(this.first - this.started)} ms`);
    if (ended && count > 1) parts.push(`${(count / seconds).toFixed(seconds > count / 20 ? 1 : 0)} tokens/s`);
    if (ended && this.tokens) parts.push(`perplexity ${Math.exp(this.surprise / this.tokens).toFixed(2)}`);
    if (ended && this.reason) parts.push({stop: 'ended by itself', length: 'cut off at max tokens'}[this.reason] ?? this.reason);
    this.told.replaceChildren(...parts.map(part => make('span', {textContent: part})));
    this.copy.disabled = !this.content;
    this.format();
    if (ended && !this.content && this.error.hidden && this.reason !== 'stopped') this.text.prepend(make('span', {className: 'empty', textContent: 'An empty answer. '}));
  }

  // At most once a frame: an answer that streams is parsed anew with each part.
  format() {
    if (!$('formatted').checked || this.waits) return;
    this.waits = requestAnimationFrame(() => { this.waits = 0; this.shown.replaceChildren(...formatted(this.content)); });
  }

  async judge(scorer, gold, signal) {
    if (!this.content || !this.error.hidden || this.reason === 'stopped') return;
    const item = {prompt: this.prompt, response: this.content, ...(gold ? {gold} : {})};
    try {
      const response = await call('/v1/score', {model: scorer, input: [item]}, signal);
      this.score = (await response.json()).data[0].score;
      this.number.textContent = this.score === null ? 'missing' : readable(this.score);
      this.reward.hidden = false;
    } catch (error) {
      if (!signal.aborted) this.fail(new Error('No reward: ' + error.message));
    }
  }
}

// OpenAI's two shapes of log-probabilities as one: [{token, logprob, bytes?, top: [{token, logprob}]}]
function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) return logprobs.content.map(entry => ({...entry, top: entry.top_logprobs ?? []}));
  return (logprobs.tokens ?? []).map((token, i) => ({token, logprob: logprobs.token_logprobs[i] ?? 0,
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([token, logprob]) => ({token, logprob}))}));
}

const minus = text => text.replace(/^-(?=0*\.?0*$)/, '').replace('-', '−');
const readable = value => minus(Number.isInteger(value) ? String(value) : value.toFixed(Math.abs(value) < 0.1 ? 3 : 2));
const percent = logprob => { const p = 100 * Math.exp(logprob); return p >= 99.95 ? '100 %' : p >= 0.1 ? p.toFixed(1) + ' %' : '<0.1 %'; };
const visible = token => token.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replace(/^ | $/g, '␣') || '(empty)';

// -- Markdown and formulas ----------------------------------------------------------------------------------------

// marked only parses. Elements are made here, so nothing that a model writes becomes markup; Temml makes MathML.
const FORMULA = {
  inline: /^(?:\\\(([\s\S]+?)\\\)|\$(?![\s\d])([^$\n]*[^\s$\\])\$(?!\d)|\$([^\s$\n]|\d[^$\n]*[^\s$\\\d])\$(?!\d))/,
  block: /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])\s*(?:\n|$)/,
};
marked.use({extensions: ['inline', 'block'].map(level => ({
  name: `${level}Formula`, level,
  start: text => { const at = text.search(level === 'inline' ? /\$|\\\(/ : /\$\$|\\\[/); return at < 0 ? undefined : at; },
  tokenizer: text => {
    const found = FORMULA[level].exec(text);
    return found ? {type: `${level}Formula`, raw: found[0], text: found.slice(1).find(Boolean)} : undefined;
  },
}))});
const ELEMENTS = {paragraph: 'p', strong: 'strong', em: 'em', del: 'del', blockquote: 'blockquote', br: 'br', hr: 'hr'};

function formatted(text) { return marked.lexer(text).flatMap(elements); }
const inside = tokens => (tokens ?? []).flatMap(elements);

function elements(token) {
  switch (token.type) {
    case 'space': case 'def': return [];
    case 'heading': return [make(`h${token.depth}`, {}, ...inside(token.tokens))];
    case 'code': return [make('pre', {}, make('code', {textContent: token.text}))];
    case 'codespan': return [make('code', {textContent: token.text})];
    case 'list': return [make(token.ordered ? 'ol' : 'ul', token.ordered && token.start !== '' ? {start: token.start} : {}, ...token.items.map(item => make('li', {}, ...inside(item.tokens))))];
    case 'table': return [make('table', {}, row('th', token.header), ...token.rows.map(cells => row('td', cells)))];
    case 'link': return /^https?:/.test(token.href) ? [make('a', {href: token.href, target: '_blank', rel: 'noreferrer'}, ...inside(token.tokens))] : inside(token.tokens);
    case 'inlineFormula': case 'blockFormula': return [formula(token.text, token.type === 'blockFormula')];
    case 'checkbox': return [token.checked ? '☑ ' : '☐ '];
    case 'image': case 'html': case 'escape': return [token.type === 'escape' ? token.text : token.raw];
    default: return ELEMENTS[token.type] ? [make(ELEMENTS[token.type], {}, ...inside(token.tokens))] : token.tokens ? inside(token.tokens) : [token.text ?? token.raw];
  }
}
const row = (tag, cells) => make('tr', {}, ...cells.map(cell => make(tag, {}, ...inside(cell.tokens))));

function formula(text, block) {
  const element = make(block ? 'div' : 'span');
  try { temml.render(text, element, {displayMode: block, throwOnError: true}); } catch { element.textContent = text; }
  return element;
}

// -- token probabilities ------------------------------------------------------------------------------------------

const hint = $('hint');
let pointed = null;
function point(span) {
  if (pointed) pointed.classList.remove('on');
  pointed = span;
  hint.style.visibility = span ? 'visible' : 'hidden';
  if (!span) return;
  span.classList.add('on');
  hint.replaceChildren(...span.tokens.flatMap(token => {
    const others = [...token.top].filter(other => other.token !== token.token);
    const rows = [token, ...others].sort((a, b) => b.logprob - a.logprob).slice(0, 6).map(entry => {
      const bar = make('i');
      bar.style.setProperty('--share', String(Math.exp(entry.logprob)));
      return make('div', {className: entry === token ? 'row chosen' : 'row'}, bar,
        make('span', {textContent: visible(entry.token)}), make('b', {textContent: percent(entry.logprob)}));
    });
    return [make('div', {className: 'first'}, make('span', {textContent: percent(token.logprob)}),
      make('span', {className: 'soft', textContent: 'logprob ' + minus(token.logprob.toFixed(3))})), ...rows];
  }));
  const box = span.getClientRects()[0], width = hint.offsetWidth, height = hint.offsetHeight;
  hint.style.left = Math.max(8, Math.min(box.left, innerWidth - width - 8)) + 'px';
  hint.style.top = (box.bottom + height + 10 > innerHeight ? Math.max(8, box.top - height - 6) : box.bottom + 6) + 'px';
}
const tokenAt = event => event.target.closest?.('.t');
document.addEventListener('pointerover', event => { if (event.pointerType === 'mouse') point(tokenAt(event)); });
document.addEventListener('click', event => point(tokenAt(event)));   // a finger cannot hover
document.addEventListener('scroll', () => point(null), {passive: true});

// -- the form -----------------------------------------------------------------------------------------------------

const answers = [new Answer(0), new Answer(1)];
$('answers').append(...answers.map(answer => answer.card));

function asked() {
  const prompt = $('prompt').value, system = $('system').value.trim();
  const number = id => $(id).value === '' ? undefined : Number($(id).value);
  return {
    prompt, form: $('form_of_prompt').value,
    system: system ? [{role: 'system', content: system}] : [],
    follow: $('follow').checked,
    // One seed for both: at equal weights the answers are equal.
    sampling: {temperature: number('temperature'), top_p: number('top_p'), max_tokens: number('max_tokens'), seed: number('seed') ?? Math.floor(Math.random() * 2 ** 31)},
  };
}

// What a model's generation_config.json sets and the fields do not, which the server adds to the request.
function sayWhatIsInForce() {
  const {sampling} = asked();
  const lines = [...new Set(answers.map(answer => answer.select.value))].flatMap(model => {
    const added = Object.entries(cards[model]?.sampling ?? {}).filter(([name]) => sampling[name] === undefined);
    return added.length ? [`${model} samples with ${added.map(([name, value]) => `${name} ${value}`).join(', ')} besides (its generation_config.json).`] : [];
  });
  $('force').textContent = lines.join(' ');
  $('force').hidden = !lines.length;
}
$('form').addEventListener('input', sayWhatIsInForce);
$('answers').addEventListener('change', sayWhatIsInForce);

async function run() {
  running?.abort();
  keepForm();
  const mine = running = new AbortController(), {signal} = mine, what = asked(), scorer = $('scorer').value;
  $('run').disabled = true; $('stop').disabled = false;
  if (what.follow && what.form !== 'text') $('prompt').value = '';
  if ($('answers').getBoundingClientRect().top > innerHeight * 0.6) $('answers').scrollIntoView({behavior: 'smooth'});
  await Promise.all(answers.map(async answer => {
    await answer.run(what, signal);
    if (scorer) await answer.judge(scorer, $('gold').value, signal);
  }));
  const [left, right] = answers;
  if (left.score !== null && right.score !== null && left.score !== right.score) {
    const [better, worse] = left.score > right.score ? [left, right] : [right, left];
    better.better.textContent = `better by ${readable(better.score - worse.score)}`;
  }
  if (running === mine) { running = null; $('run').disabled = false; $('stop').disabled = true; }
}

// -- games: the server plays one anew from its answers, so that all there is of it is here -------------------------

let game = null;       // {model, number, answers, shown: message number -> element, messages, over}

const shownTurns = () => game.messages.map((message, i) => ({...message, shown: game.shown[i]}));

async function step(answer, shown) {
  const {model, number} = game, given = answer === undefined ? game.answers : [...game.answers, answer];
  const told = await (await call('/v1/games', {model, game: number, answers: given})).json(), [left] = answers;
  if (shown) game.shown[game.messages.length] = shown;
  Object.assign(game, told, {answers: given});
  left.turns = shownTurns();
  left.clear();
  if (!told.over) return;
  if (told.error) left.fail(new Error(`The environment failed: ${told.error}`));
  left.number.textContent = readable(told.reward);
  left.better.textContent = [...told.cut ? ['too many turns'] : [], ...Object.entries(told.parts).map(part => part.join(' '))].join(', ');
  left.reward.hidden = false;
}

// The model goes on from the game's messages, of which the last is the environment's.
async function modelMove(signal) {
  const [left] = answers, {content} = game.messages.at(-1);
  left.turns = shownTurns().slice(0, -1);
  await left.run({...asked(), form: 'chat', system: [], follow: true, prompt: content}, signal);
  if (left.error.hidden && !signal.aborted) {
    await step(left.content, make('div', {className: 'turn assistant'}, ...left.text.childNodes));
  }
}

async function inGame(act) {
  if (running) return;
  running = new AbortController();
  const buttons = ['run', 'new_game', 'own_move', 'model_move'].map($);
  for (const button of buttons) button.disabled = true;
  $('stop').disabled = false;
  try { await act(running.signal); } catch (error) { answers[0].fail(error); }
  running = null;
  for (const button of buttons) button.disabled = false;
  $('stop').disabled = true;
  $('own_move').disabled = $('model_move').disabled = !game?.messages || game.over;
}

$('new_game').addEventListener('click', () => inGame(() => {
  const model = answers[0].select.value;
  game = {model, number: Number($('seed').value || Math.floor(Math.random() * 2 ** 31)), answers: [], shown: {}};
  $('prompt').value = '';
  return step();
}));
$('own_move').addEventListener('click', () => inGame(async () => { await step($('prompt').value); $('prompt').value = ''; }));
$('model_move').addEventListener('click', () => inGame(modelMove));
function offerGames() { $('games').hidden = !cards[answers[0].select.value]?.game; }
$('answers').addEventListener('change', offerGames);

$('form').addEventListener('submit', event => { event.preventDefault(); if (!running) run(); });
$('stop').addEventListener('click', () => running?.abort());
$('prompt').addEventListener('keydown', event => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if ($('own_move').disabled) $('form').requestSubmit(); else $('own_move').click();
});
$('form').addEventListener('input', keepForm);
$('formatted').addEventListener('change', event => {
  $('answers').classList.toggle('formatted', event.target.checked);
  for (const answer of answers) answer.format();
});
$('examples').addEventListener('change', event => { if (event.target.value) choose(examples[Number(event.target.value)]); event.target.value = ''; });
$('shade').addEventListener('change', event => $('answers').classList.toggle('shade', event.target.checked));
$('form_of_prompt').addEventListener('change', event => { $('system').disabled = event.target.value === 'text'; });

function keepForm() {
  sessionStorage.setItem(FORM, JSON.stringify(Object.fromEntries(KEPT.map(id => [id, $(id).value]))));
}

function restoreForm() {
  const kept = JSON.parse(sessionStorage.getItem(FORM) ?? '{}');
  for (const [id, value] of Object.entries(kept)) $(id).value = value;
  $('system').closest('details').open = Boolean(kept.system);
  $('system').disabled = kept.form_of_prompt === 'text';
}

function choose(example) {
  $('prompt').value = example.prompt;
  $('system').value = example.system ?? '';
  $('system').closest('details').open = Boolean(example.system);
  $('gold').value = example.gold ?? '';
  $('form_of_prompt').value = example.chat === false ? 'text' : 'auto';
  $('system').disabled = example.chat === false;
}

// -- models and token -------------------------------------------------------------------------------------------

function askToken() {
  $('refused').hidden = !sessionStorage.getItem(KEY);
  $('secret').value = '';
  if (!$('ask').open) $('ask').showModal();
}
$('token').addEventListener('click', () => { askToken(); $('refused').hidden = true; });
$('ask').addEventListener('close', () => {
  if ($('secret').value) { sessionStorage.setItem(KEY, $('secret').value.trim()); start(); }
});

async function start() {
  $('trouble').hidden = true;
  try {
    const listed = (await (await call('/v1/models')).json()).data;
    cards = Object.fromEntries(listed.map(card => [card.id, card.metadata ?? {}]));
  } catch (error) {
    if (error.cause === 401) return;   // the dialog asks for the token
    $('trouble').textContent = error.message;
    $('trouble').hidden = false;
    return;
  }
  const names = Object.keys(cards), scorers = names.filter(name => cards[name].task === 'score');
  const models = names.filter(name => !scorers.includes(name));
  const base = models.find(name => cards[name].base) ?? models[0];
  const tuned = models.findLast(name => name !== base) ?? base;
  for (const [answer, start] of [[answers[0], base], [answers[1], tuned]]) {
    const kept = answer.select.value;
    answer.select.replaceChildren(...models.map(name => make('option', {value: name, textContent: name})));
    answer.select.value = models.includes(kept) ? kept : start;
  }
  sayWhatIsInForce();
  offerGames();
  $('rewards').hidden = !scorers.length;
  $('scorer').replaceChildren(...scorers.map(name => make('option', {value: name, textContent: name})), make('option', {value: '', textContent: 'none'}));
  $('run').disabled = !models.length;
  if (!models.length) { $('trouble').textContent = 'The server has no model that generates.'; $('trouble').hidden = false; }
  const given = names.flatMap(name => cards[name].examples ?? []);
  examples = [...new Map((given.length ? given : EXAMPLES).map(example => [example.prompt, example])).values()].slice(0, 6);
  $('examples').replaceChildren(make('option', {value: '', textContent: 'Example prompts'}), ...examples.map((example, place) =>
    make('option', {value: String(place), textContent: example.prompt.trim().replace(/\s+/g, ' ').slice(0, 80)})));
  if (!$('prompt').value) choose(examples[0]);
}
restoreForm();
start();
