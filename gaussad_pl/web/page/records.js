import { verdictOf } from "./judging.js";

const COLUMNS = ["path", "score", "p_value", "verdict", "threshold"];

/** Return a row as `gaussad_pl.predict` writes it, at one of the detector's rates. */
export function record(row, about, rate) {
  return {
    path: row.name,
    score: row.score,
    p_value: row.p_value,
    verdict: verdictOf(row, rate),
    threshold: row.error ? null : about.rates[rate].threshold,
    distances: row.distances,
    error: row.error,
  };
}

export function asJsonLines(records) {
  return records.map(each => `${JSON.stringify(each)}\n`).join("");
}

export function asCsv(records, levels) {
  const cell = value => {
    const text = String(value ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const header = [...COLUMNS, ...levels.map(level => `level_${level}`), "error"];
  const lines = records.map(each => [...COLUMNS.map(name => each[name]), ...levels.map(level => each.distances?.[level]), each.error]);
  return [header, ...lines].map(line => `${line.map(cell).join(",")}\n`).join("");
}

/** Let the browser save a text as a file. */
export function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser may not have begun to read it
}
