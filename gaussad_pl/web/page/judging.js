/** The server did not answer: it is gone or busy, and no image is at fault. */
export class NoAnswer extends Error {}

/** Return what the server answers in JSON; an error with its message if it refuses. */
export async function ask(path, options) {
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json();
  } catch {
    throw new NoAnswer("The server does not respond. Is it still running?");
  }
  if (response.status === 503) throw new NoAnswer(content.error); // too many uploads at once
  if (!response.ok) throw new Error(content.error);
  return content;
}

async function bytes(file, largest) {
  const megabytes = size => Math.round(size / 2 ** 20);
  if (file.size > largest) throw new Error(`The file is ${megabytes(file.size)} MB; at most ${megabytes(largest)} MB are accepted.`);
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error("The browser cannot read this file. Is it a folder, or has it been removed?");
  }
}

/** Return the row of a file: what the server says of it, or the error. */
export async function judge(file, largest) {
  try {
    const body = await bytes(file, largest);
    return { name: file.name, error: null, ...await ask("detect", { method: "POST", body }) };
  } catch (error) {
    if (error instanceof NoAnswer) throw error;
    return { name: file.name, error: error.message, score: null, p_value: null, distances: null };
  }
}

/** Return the detector's own verdict on a row at one of its rates, or "error". */
export function verdictOf(row, rate) {
  return row.error ? "error" : row.verdicts[rate];
}
