import { Camera } from "./camera.js";
import { ask, judge, verdictOf } from "./judging.js";
import { plot } from "./plot.js";
import { Queue } from "./queue.js";
import { asCsv, asJsonLines, record, save } from "./records.js";
import { digits, drawn, sideOf, tally, update } from "./table.js";
import { effect, range } from "./threshold.js";

const PICTURES = 200; // that are kept, the latest ones
const at = id => document.getElementById(id);

const about = await ask("about").catch(error => { say(error); throw error; });
const rows = []; // of the session: the answers of the server, each with its name, its error and its line of the table
let shown = null; // one of the rows
let rate = about.initial; // index of the chosen one
let hand = null; // manual threshold

function say(error) {
  at("error").hidden = !error;
  at("error").textContent = error ? error.message : "";
}

// ---------------------------------------------------------------------------------------------- one image and its map

function showImage() {
  const verdict = shown && verdictOf(shown, rate), chosen = about.rates[rate];
  const readable = shown && !shown.error;
  const reason = shown?.error ?? chosen.undecided;
  at("reason").textContent = reason;
  at("reason").hidden = !reason;
  at("line").textContent = chosen.undecided ? "" : chosen.line;
  at("facts").hidden = !readable;
  if (shown) {
    at("verdict").textContent = verdict;
    at("verdict").className = verdict;
    at("shown").textContent = shown.name + (readable && !shown.photo ? " (its map is no longer kept)" : "");
  }
  if (readable) {
    at("p_value").textContent = shown.p_value.toPrecision(3);
    at("score").textContent = digits(shown.score);
    at("threshold").textContent = digits(chosen.threshold);
  }
  const ends = range(about.scores, [chosen.threshold, hand, shown?.score]);
  if (isFinite(ends[0])) plot(at("plot"), about.scores, ends, { threshold: chosen.threshold, hand, score: shown?.score, verdict });
}

function showMap() {
  const photo = shown?.photo, heat = shown?.heat;
  at("stack").hidden = !photo;
  at("hint").hidden = Boolean(photo);
  at("map").hidden = at("heat").hidden = !heat;
  at("scale").hidden = !(heat && about.scale);
  at("photo").src = photo ?? "data:,";
  at("photo").alt = photo ? shown.name : "";
  at("heat").src = heat ?? "data:,";
  at("heat").alt = heat ? "Anomaly map" : "";
}

function select(row) {
  shown?.line.removeAttribute("aria-current");
  shown = row;
  row.line.setAttribute("aria-current", "true");
  showImage();
  showMap();
}

const described = row => `${row.name}: ${verdictOf(row, rate)}${row.error ? `. ${row.error}` : `, p-value ${row.p_value.toPrecision(3)}`}`;

// ------------------------------------------------------------------------------------------------------------ thresholds

function showThreshold() {
  const { threshold } = about.rates[rate], value = hand ?? threshold;
  const [low, high] = range(about.scores, [threshold, ...rows.map(row => row.score)]);
  Object.assign(at("hand"), { min: low, max: high, step: (high - low) / 200, value: value ?? high });
  at("hand").setAttribute("aria-valuetext", digits(value));
  at("effect").textContent = value === null ? "No threshold." : `Above ${digits(value)}: ${effect(about.scores, value)}`;
  at("notice").hidden = hand === null;
  document.querySelector("table").classList.toggle("with_hand", hand !== null);
}

function showAll() {
  showThreshold();
  showImage();
  rows.forEach(row => update(row.line, row, rate, hand));
  at("tally").textContent = tally(rows, rate) + (hand === null ? "" : `; ${rows.filter(row => !row.error && sideOf(row.score, hand) === "above").length} above ${digits(hand)}`);
}

// --------------------------------------------------------------------------------------------------- images, one by one

async function take(file) {
  const row = await judge(file, about.largest);
  const follow = !shown || shown === rows.at(-1); // unless an earlier one is being looked at
  row.line = drawn(row, () => { select(row); at("said").textContent = described(row); });
  rows.push(row);
  at("rows").prepend(row.line);
  at("session").hidden = false;
  const old = rows[rows.length - 1 - PICTURES];
  if (old && old !== shown) old.photo = old.heat = undefined;
  if (follow) select(row);
  showAll();
}

const queue = new Queue(take, problem => {
  const { done, total, paused, waiting, running } = queue;
  if (problem) say(problem);
  const left = waiting.length;
  at("pause").hidden = !left;
  at("pause").textContent = paused ? `Resume (${left} left)` : "Pause";
  at("progress").textContent = total > 1 && (left || running) ? `${done} of ${total} judged` : running || left ? "Judging …" : "";
  if (!left && !running && done) at("said").textContent = done === 1 ? described(rows.at(-1)) : `${done} images judged. This session: ${tally(rows, rate)}`;
});

function add(files) {
  if (!files.length) return;
  say(null);
  queue.add(files);
}

const camera = new Camera(at("video"), () => { closeCamera(); say(new Error("The camera was disconnected.")); });

async function openCamera() {
  try {
    await camera.open();
    say(null);
    at("viewfinder").hidden = false;
    at("shoot").focus();
  } catch (error) {
    closeCamera();
    say(error);
  }
}

function closeCamera() {
  camera.close();
  at("viewfinder").hidden = true;
}

// ----------------------------------------------------------------------------------------------------------------- start

at("name").textContent = about.name;
at("scheme").textContent = `Calibration: ${about.scheme}`;
at("fpr").replaceChildren(...about.rates.map(({ fpr, undecided }, i) => new Option(`${+(100 * fpr).toPrecision(3)} %${undecided ? " (undecided)" : ""}`, fpr, false, i === rate)));
if (about.scale) {
  at("bar").style.backgroundImage = `url(${about.scale.bar})`;
  at("ticks").replaceChildren(...about.scale.ticks.map(tick => Object.assign(document.createElement("span"), { textContent: Number(tick).toPrecision(3) })));
  at("legend").textContent = about.scale.legend;
}
showAll();

at("file").addEventListener("change", () => { add([...at("file").files]); at("file").value = ""; });
at("pause").addEventListener("click", () => {
  say(null);
  if (queue.paused) queue.resume();
  else queue.pause();
});
at("camera").addEventListener("click", openCamera);
at("close").addEventListener("click", () => { closeCamera(); at("camera").focus(); });
at("shoot").addEventListener("click", async () => add([await camera.shot()]));
at("fpr").addEventListener("change", () => { rate = at("fpr").selectedIndex; hand = null; showAll(); });
at("hand").addEventListener("input", () => { hand = Number(at("hand").value); showAll(); });
at("release").addEventListener("click", () => { hand = null; showAll(); at("hand").focus(); });
at("opacity").addEventListener("input", () => { at("heat").style.opacity = at("opacity").value / 100; });
at("csv").addEventListener("click", () => save(asCsv(rows.map(row => record(row, about, rate)), about.levels), "predictions.csv", "text/csv"));
at("jsonl").addEventListener("click", () => save(asJsonLines(rows.map(row => record(row, about, rate))), "predictions.jsonl", "application/jsonl"));
for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, event => {
  event.preventDefault();
  document.body.classList.toggle("over", kind === "dragover");
  if (kind === "drop") add(event.dataTransfer.files);
});
addEventListener("paste", event => { add(event.clipboardData.files); });
