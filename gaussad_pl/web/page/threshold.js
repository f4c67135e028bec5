/** Return how many of the scores, in ascending order, are above a threshold. */
export function above(scores, threshold) {
  let low = 0, high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] > threshold) high = middle;
    else low = middle + 1;
  }
  return scores.length - low;
}

/**
 * Say what a threshold does to the calibration images and what that means for new ones.
 *
 * A threshold that m of n calibration scores exceed is at least the conformal one of rank m + 1, which a good image
 * like these exceeds with a probability of at most (m + 1) / (n + 1).
 */
export function effect(scores, threshold) {
  const count = above(scores, threshold), n = scores.length;
  const most = +(100 * (count + 1) / (n + 1)).toPrecision(2);
  return `${count} of ${n} good calibration images would be called bad; expect up to ${most} % of new good ones.`;
}

/** Return the ends of a slider over all scores, a little beyond them. */
export function range(scores, more) {
  const all = [...scores, ...more].filter(each => typeof each === "number");
  const low = Math.min(...all), high = Math.max(...all), margin = 0.05 * (high - low) || 1;
  return [low - margin, high + margin];
}
