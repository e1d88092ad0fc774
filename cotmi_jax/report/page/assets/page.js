'use strict';
(async () => {
  const $ = (id) => document.getElementById(id);
  const block = $('answers');
  const read = async () => {
    const text = block.textContent;
    if (block.dataset.encoding !== 'gzip') return JSON.parse(text);
    const packed = atob(text.trim());
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return JSON.parse(await new Response(stream).text());
  };
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const sets = (await read()).sets;
  const items = [];
  sets.forEach((set, s) => set.id.forEach((_, i) => items.push({ s, i, text: null })));
  const list = $('list'), spacer = $('spacer'), detail = $('detail'), count = $('count');
  const query = $('query'), inputs = { set: $('set'), seed: $('seed'), right: $('right'), wrong: $('wrong') };
  let shown = items, active = 0, height = 64;

  const options = (select, values) => values.forEach(([value, text]) => {
    const option = make('option', '', text);
    option.value = value;
    select.append(option);
  });
  const names = [...new Set(sets.flatMap((set) => set.methods.map((method) => method.name)))];
  const seeds = [...new Set(sets.flatMap((set) => set.runs.map((run) => run.seed)))].sort((a, b) => a - b);
  options(inputs.set, [['', 'All data sets'], ...sets.map((set, s) => [s, set.name])]);
  options(inputs.seed, [['', seeds.length > 1 ? 'Every seed' : 'Any seed'], ...seeds.map((seed) => [seed, `Seed ${seed}`])]);
  for (const key of ['right', 'wrong'])
    options(inputs[key], [['', 'Any method'], ...names.map((name, m) => [m, name]), ['*', 'Every method']]);
  inputs.set.closest('label').hidden = sets.length < 2;
  inputs.seed.closest('label').hidden = seeds.length < 2;

  // The runs of a set that a choice of method and the chosen seed select; none of a set that lacks the method.
  const runs = (set, choice) => set.runs.filter((run) =>
    (choice === '*' || set.methods[run.method].name === names[choice]) &&
    (inputs.seed.value === '' || run.seed === Number(inputs.seed.value)));
  const label = (set, number) => (number < 0 ? '' : set.labels[number]);
  const searchable = (item) => {
    const set = sets[item.s], i = item.i;
    const parts = [set.id[i], set.input[i], label(set, set.gold[i]), label(set, set.teacher[i]), set.why ? set.why[i] : ''];
    for (const run of set.runs) parts.push(label(set, run.label[i]), run.why ? run.why[i] : '');
    return parts.join('\n').toLowerCase();
  };

  const filter = () => {
    const wanted = query.value.trim().toLowerCase();
    const chosen = sets.map((set) => ['right', 'wrong'].map((key) => {
      const choice = inputs[key].value;
      return choice === '' ? null : runs(set, choice);
    }));
    const all = (group, i, mark) => !group || (group.length > 0 && group.every((run) => run.right[i] === mark));
    shown = items.filter((item) =>
      (inputs.set.value === '' || item.s === Number(inputs.set.value)) &&
      all(chosen[item.s][0], item.i, '1') && all(chosen[item.s][1], item.i, '0') &&
      (!wanted || (item.text ??= searchable(item)).includes(wanted)));
    active = 0;
    list.scrollTop = 0;
    const digits = (number) => number.toLocaleString('en');
    count.textContent = `${digits(shown.length)} of ${digits(items.length)} examples`;
    $('none').hidden = shown.length > 0;
    draw();
    open();
  };

  const MARKS = { 1: ['right', 'right'], 0: ['wrong', 'wrong'], 2: ['mixed', 'right for some seeds'] };
  const marks = (item) => {
    const set = sets[item.s], node = make('span', 'marks');
    set.methods.forEach((method, m) => {
      const found = new Set(set.runs.filter((run) => run.method === m &&
        (inputs.seed.value === '' || run.seed === Number(inputs.seed.value))).map((run) => run.right[item.i]));
      if (!found.size) return;
      const [shape, word] = MARKS[found.size > 1 ? 2 : [...found][0]];
      const mark = make('span', `mark ${shape} c${method.place % block.dataset.colors}`);
      mark.title = `${method.name}: ${word}`;
      mark.setAttribute('role', 'img');
      mark.setAttribute('aria-label', mark.title);
      node.append(mark);
    });
    return node;
  };
  const row = (n) => {
    const item = shown[n], set = sets[item.s], node = make('div', 'row');
    node.id = `row-${n}`;
    node.setAttribute('role', 'option');
    node.setAttribute('aria-selected', n === active);
    node.setAttribute('aria-posinset', n + 1);
    node.setAttribute('aria-setsize', shown.length);
    node.style.transform = `translateY(${n * height}px)`;
    const text = make('span', 'text', set.input[item.i].slice(0, 300));
    text.dir = 'auto';
    const gold = make('bdi', 'gold', label(set, set.gold[item.i]).slice(0, 80));
    node.append(text, marks(item), gold);
    node.onclick = () => { select(n); if (innerWidth < 900) detail.scrollIntoView({ block: 'start' }); };
    return node;
  };
  const draw = () => {
    spacer.style.height = `${shown.length * height}px`;
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 4);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
    const rows = [];
    for (let n = first; n < last; n++) rows.push(row(n));
    spacer.replaceChildren(...rows);
    const inView = active >= first && active < last;
    if (inView) list.setAttribute('aria-activedescendant', `row-${active}`);
    else list.removeAttribute('aria-activedescendant');
  };

  const long = (text, name) => {
    const node = make('p', `long ${name}`, text);
    node.dir = 'auto';
    if (text.length > 1500) node.tabIndex = 0;
    return node;
  };
  const answer = (set, run, i) => {
    const right = run.right[i] === '1', node = make('div', right ? 'answer right' : 'answer wrong');
    const head = make('p', 'head');
    const sure = run.confidence[i] < 0 ? '' : `, confidence ${(run.confidence[i] / 1000).toFixed(2)}`;
    head.append(make('b', 'sign', right ? '✓ right' : '✗ wrong'), ' ', make('bdi', 'label', label(set, run.label[i]) || 'no label'));
    head.append(make('span', 'note', ` seed ${run.seed}${sure}`));
    node.append(head);
    if (run.why && run.why[i] !== null) node.append(long(run.why[i], 'why'));
    return node;
  };
  const open = () => {
    $('previous').disabled = active <= 0;
    $('next').disabled = active >= shown.length - 1;
    const body = $('example');
    if (!shown.length) return body.replaceChildren();
    const { s, i } = shown[active], set = sets[s], parts = [];
    const title = make('h3', '');
    title.append(make('bdi', '', set.id[i]));
    parts.push(title, long(set.input[i], 'input'));
    const facts = make('dl', 'facts');
    const fact = (name, text) => { const value = make('dd', ''); value.append(make('bdi', '', text)); facts.append(make('dt', '', name), value); };
    fact('Gold label', label(set, set.gold[i]));
    if (set.teacher[i] >= 0) fact('Teacher’s label', label(set, set.teacher[i]));
    if (set.why && set.why[i] !== null) fact('Teacher’s rationale', set.why[i]);
    parts.push(facts);
    set.methods.forEach((method, m) => {
      const own = runs(set, '*').filter((run) => run.method === m);
      if (!own.length) return;
      const head = make('h4', `c${method.place % block.dataset.colors}`, '■ ');
      head.append(make('span', 'name', method.name));
      parts.push(head, ...own.map((run) => answer(set, run, i)));
    });
    body.replaceChildren(...parts);
  };
  const select = (n) => {
    active = Math.max(0, Math.min(shown.length - 1, n));
    const top = active * height;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
    draw();
    open();
  };

  let waiting = false;
  list.addEventListener('scroll', () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  }, { passive: true });
  list.addEventListener('keydown', (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / height) - 1);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(to);
  });
  $('previous').onclick = () => select(active - 1);
  $('next').onclick = () => select(active + 1);
  query.addEventListener('input', filter);
  Object.values(inputs).forEach((input) => input.addEventListener('change', filter));
  $('browser').hidden = false;
  height = spacer.getBoundingClientRect().height || height;
  addEventListener('resize', draw);
  filter();
})();
