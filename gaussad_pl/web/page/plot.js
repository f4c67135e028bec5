const BINS = 40, LEFT = 8, WIDTH = 304, FLOOR = 72, HEIGHT = 52;

function shape(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/**
 * Draw the histogram of the calibration scores, with the thresholds and the score of an image where they are known.
 *
 * @param ends lowest and highest score to show
 * @param marks `{threshold, hand, score, verdict}`, each a number, a word or null
 */
export function plot(svg, scores, [low, high], { threshold, hand, score, verdict }) {
  const x = value => LEFT + WIDTH * (value - low) / (high - low);
  const bins = new Array(BINS).fill(0);
  for (const each of scores) bins[Math.min(BINS - 1, Math.floor(BINS * (each - low) / (high - low)))]++;
  const most = Math.max(...bins, 1), step = WIDTH / BINS;
  const shapes = bins.map((count, i) => shape("rect", { x: LEFT + step * i, width: step - 0.6, y: FLOOR - HEIGHT * count / most, height: HEIGHT * count / most, rx: 1 }));
  shapes.push(shape("line", { x1: LEFT, x2: LEFT + WIDTH, y1: FLOOR + 0.5, y2: FLOOR + 0.5 }));
  const label = (value, y, text, kind) => {
    const place = x(value), anchor = place > 240 ? "end" : place < 80 ? "start" : "middle";
    shapes.push(shape("text", { x: place, y, "text-anchor": anchor, class: kind }, text));
  };
  const upright = (value, kind) => shapes.push(shape("line", { x1: x(value), x2: x(value), y1: 14, y2: FLOOR, class: kind }));
  if (threshold !== null) upright(threshold, "mark");
  if (hand !== null) upright(hand, "hand");
  if (hand !== null) label(hand, 10, "manual", "mark");
  else if (threshold !== null) label(threshold, 10, "threshold", "mark");
  if (typeof score === "number") {
    shapes.push(shape("path", { d: `M${x(score)} ${FLOOR}l-5 9h10z`, class: verdict }));
    label(score, 92, "this image", verdict);
  } else if (scores.length) {
    label(scores[scores.length >> 1], 90, "scores of good images", "");
  }
  svg.replaceChildren(...shapes);
}
