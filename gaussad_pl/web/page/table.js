import { verdictOf } from "./judging.js";

export const digits = value => value === null ? "none" : Number(value).toPrecision(4);

function cell(content, kind = "") {
  const made = document.createElement("td");
  made.className = kind;
  made.append(content);
  return made;
}

/** Return a new row of the table; its verdict is filled in by `update`. */
export function drawn(row, show) {
  const line = document.createElement("tr");
  const name = Object.assign(document.createElement("button"), { className: "plain", textContent: row.name });
  const picture = row.thumbnail ? Object.assign(document.createElement("img"), { src: row.thumbnail, alt: "" }) : "";
  const known = (value, text) => row.error ? "–" : text(value);
  line.append(
    cell(picture), cell(name), cell("", "verdict"), cell(known(row.p_value, value => value.toPrecision(3)), "number"),
    cell(known(row.score, digits), "number"), cell("", "by_hand"),
  );
  line.addEventListener("click", show); // also of the button in it, with mouse or keyboard
  return line;
}

/** Fill in the verdict of a row at a rate, and on which side of a manual threshold it is, if there is one. */
export function update(line, row, rate, hand) {
  const verdict = verdictOf(row, rate);
  const place = line.querySelector(".verdict");
  place.textContent = verdict;
  place.className = `verdict ${verdict}`;
  line.querySelector(".by_hand").textContent = row.error || hand === null ? "" : sideOf(row.score, hand);
}

/** A score that is not a number is above any threshold, as for the detector. */
export function sideOf(score, threshold) {
  return score !== null && score <= threshold ? "below" : "above";
}

/** Return the number of rows with each verdict, in words. */
export function tally(rows, rate) {
  const counts = new Map();
  for (const row of rows) counts.set(verdictOf(row, rate), (counts.get(verdictOf(row, rate)) ?? 0) + 1);
  const words = { good: "good", bad: "bad", undecided: "undecided", error: "unreadable" };
  return Object.keys(words).filter(kind => counts.has(kind)).map(kind => `${counts.get(kind)} ${words[kind]}`).join(", ");
}
