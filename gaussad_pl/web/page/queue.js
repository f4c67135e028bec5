const MOST = 200; // files that are taken at once

/** Files that are judged one after another. It can be paused, and pauses by itself if `judge` fails; no file is lost. */
export class Queue {
  waiting = [];
  done = 0; // since it was last empty
  paused = false;
  running = false;

  /**
   * @param judge handles a file; a promise that is rejected puts the file back
   * @param changed is called after each change, with the error if there was one
   */
  constructor(judge, changed) {
    this.judge = judge;
    this.changed = changed;
  }

  get total() {
    return this.done + this.waiting.length + this.running;
  }

  /** Add files, and go on if it was paused. */
  add(files) {
    const taken = [...files].slice(0, MOST);
    if (!this.running && !this.waiting.length) this.done = 0;
    this.waiting.push(...taken);
    this.resume();
    const left = files.length - taken.length;
    if (left) this.changed(new Error(`At most ${MOST} images are accepted at once; ${left} were left out. For whole folders, use gaussad_pl.predict.`));
  }

  /** Stop after the image that is being judged. */
  pause() {
    this.paused = true;
    this.changed();
  }

  resume() {
    this.paused = false;
    this.changed();
    this.#run();
  }

  async #run() {
    if (this.running) return;
    while (this.waiting.length && !this.paused) {
      const file = this.waiting.shift();
      let problem;
      this.running = true;
      try {
        await this.judge(file);
        this.done++;
      } catch (error) {
        this.waiting.unshift(file);
        this.paused = true;
        problem = error;
      } finally {
        this.running = false;
      }
      this.changed(problem);
    }
  }
}
