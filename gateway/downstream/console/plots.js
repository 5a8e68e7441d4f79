/** Word-sized plots in inline SVG: a line for times, stacked bars for tokens. Knows numbers only. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 28;
const SHOWN = 24;

/** Draw the last values as a line over a filled area. */
export function drawLine(plot, values) {
  const shown = values.slice(-SHOWN);
  const most = Math.max(...shown, 1);
  const step = WIDTH / Math.max(shown.length - 1, 1);
  const points = shown.map((value, index) => `${round(index * step)},${round(HEIGHT - 1 - (value / most) * (HEIGHT - 4))}`);
  if (points.length === 1) points.push(`${WIDTH},${points[0].split(",")[1]}`);
  const shapes = [shape("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 })];
  if (points.length) {
    shapes.push(shape("polygon", { class: "area", points: `0,${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` }));
    shapes.push(shape("polyline", { class: "line", points: points.join(" ") }));
  }
  plot.replaceChildren(...shapes);
}

/** Draw the last pairs as bars from the left, the first of a pair below the second. */
export function drawBars(plot, pairs) {
  const shown = pairs.slice(-SHOWN);
  const most = Math.max(...shown.map(([below, above]) => below + above), 1);
  const step = WIDTH / SHOWN;
  const shapes = [shape("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 })];
  shown.forEach(([below, above], index) => {
    const [low, high] = [below, above].map((value) => (value / most) * (HEIGHT - 3));
    const place = { x: round(index * step), width: round(step - 1.2) };
    shapes.push(shape("rect", { class: "in", ...place, y: round(HEIGHT - low), height: round(low) }));
    shapes.push(shape("rect", { class: "out", ...place, y: round(HEIGHT - low - high), height: round(high) }));
  });
  plot.replaceChildren(...shapes);
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  return element;
}

function round(value) {
  return Math.round(value * 10) / 10;
}
