const short = v => {
  if (v === null || v === undefined) return '–';
  const a = Math.abs(v);
  if (a === 0 || (Number.isInteger(v) && a < 1e4)) return String(v);
  if (a >= 1e6) return (v / 1e6).toFixed(1) + 'M';
  if (a >= 1e4) return (v / 1e3).toFixed(1) + 'k';
  if (a < 1e-3) return v.toExponential(1);
  return v.toFixed(a < 1 ? 3 : a < 100 ? 2 : 0);
};
let charts = [];
const nearest = (points, step) => points.reduce(
  (best, p) => best && Math.abs(best[0] - step) <= Math.abs(p[0] - step) ? best : p, null);
function show(step) {
  for (const c of charts) {
    const found = c.data.series.map(points => nearest(points, step));
    const near = nearest(found.filter(Boolean), step);
    if (!near) continue;
    c.when.textContent = 'step ' + near[0];
    c.cursor.setAttribute('x1', near[2]); c.cursor.setAttribute('x2', near[2]); c.cursor.style.visibility = 'visible';
    found.forEach((p, i) => {
      c.values[i].textContent = p ? short(p[1]) + c.data.unit : '–';
      const seen = p && p[3] !== null;
      c.dots[i].style.visibility = seen ? 'visible' : 'hidden';
      if (seen) { c.dots[i].setAttribute('cx', p[2]); c.dots[i].setAttribute('cy', p[3]); }
    });
  }
}
function hide() {
  for (const c of charts) {
    c.when.textContent = c.restWhen; c.cursor.style.visibility = 'hidden';
    c.values.forEach((b, i) => { b.textContent = c.rest[i]; c.dots[i].style.visibility = 'hidden'; });
  }
}
function wire() {
  charts = [...document.querySelectorAll('[data-chart]')].map(el => ({
    data: JSON.parse(el.dataset.chart), svg: el.querySelector('svg'), cursor: el.querySelector('.cursor'),
    dots: [...el.querySelectorAll('.dot')], values: [...el.querySelectorAll('.keys b')], when: el.querySelector('em'),
  }));
  for (const c of charts) {
    c.rest = c.values.map(b => b.textContent); c.restWhen = c.when.textContent;
    const move = event => {
      const box = c.svg.getBoundingClientRect(), [low, high, begin, end] = c.data.x;
      const x = (event.clientX - box.left) / box.width * c.data.width;
      show(Math.min(high, Math.max(low, low + (x - begin) / (end - begin) * (high - low))));
    };
    c.svg.addEventListener('pointermove', move);
    c.svg.addEventListener('pointerdown', move);
    c.svg.addEventListener('pointerleave', hide);
  }
}
wire();
