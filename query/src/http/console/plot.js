// A line plot of the last five minutes, drawn anew at each reading. A null is a gap.

const SVG = "http://www.w3.org/2000/svg";
export const SPAN_MS = 300_000;

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next of 1, 2, 5, 10, 20, ... that is no smaller.
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((one) => one * power >= value * 0.999999);
  return step * power;
}

// series: [{ points: [[time_ms, value or null], ...] }]; the first one is filled. The scale goes to
// `least` at least, so that a little noise does not look like a storm.
export function draw(svg, series, now, format, least) {
  const width = svg.clientWidth || 320;
  const height = svg.clientHeight || 132;
  const [left, right, top, bottom] = [46, 2, 6, 18];
  const seen = series.flatMap((one) => one.points.map((point) => point[1])).filter((value) => value !== null);
  const most = ceiling(Math.max(least, ...seen));
  const x = (time) => left + ((time - (now - SPAN_MS)) / SPAN_MS) * (width - left - right);
  const y = (value) => top + (1 - value / most) * (height - top - bottom);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  for (const share of [0, 0.5, 1]) {
    const at = y(most * share);
    svg.append(element("line", { x1: left, x2: width - right, y1: at, y2: at, class: share === 0 ? "base" : "grid" }));
    svg.append(element("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, format(most * share)));
  }
  const times = [[SPAN_MS, "5 min ago", "start"], [SPAN_MS / 2, "2.5 min", "middle"], [0, "now", "end"]];
  for (const [ago, label, anchor] of times) {
    svg.append(element("text", { x: x(now - ago), y: height - 3, "text-anchor": anchor }, label));
  }
  series.forEach((one, index) => {
    for (const run of runs(one.points, now)) {
      const line = run.map(([time, value], at) => `${at ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      if (index === 0) {
        const area = `${line}L${x(run.at(-1)[0]).toFixed(1)} ${y(0)}L${x(run[0][0]).toFixed(1)} ${y(0)}Z`;
        svg.append(element("path", { d: area, class: "area" }));
      }
      svg.append(element("path", { d: line, class: `s${index + 1}` }));
    }
  });
}

// Stretches without a gap, inside the span. A single reading becomes a short dash, so that it shows.
function runs(points, now) {
  const found = [];
  let run = [];
  for (const [time, value] of points) {
    if (time < now - SPAN_MS) continue;
    if (value === null) {
      if (run.length) found.push(run);
      run = [];
    } else {
      run.push([time, value]);
    }
  }
  if (run.length) found.push(run);
  return found.map((one) => (one.length > 1 ? one : [[one[0][0] - 1500, one[0][1]], one[0]]));
}
