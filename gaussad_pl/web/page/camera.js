const REASONS = {
  NotAllowedError: "Access to the camera was denied. The browser asks again once it is allowed in the settings of this page.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

/** A camera of the browser, shown in a video element. */
export class Camera {
  stream = null;
  taken = 0;

  /** @param ended is called if the camera is unplugged */
  constructor(video, ended) {
    this.video = video;
    this.ended = ended;
  }

  /** Start the camera; the error of a browser without one, or of a user who denies it, is one line. */
  async open() {
    this.close();
    if (!navigator.mediaDevices) throw new Error("The camera is not available: browsers allow it on localhost and https pages only.");
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The camera cannot be used (${error.name}).`);
    }
    for (const track of this.stream.getTracks()) track.addEventListener("ended", this.ended);
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  /** Return the picture that the camera sees, as a lossless file. */
  async shot() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.video.videoWidth, this.video.videoHeight];
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
    return new File([blob], `camera-${String(++this.taken).padStart(3, "0")}.png`);
  }

  close() {
    this.stream?.getTracks().forEach(track => track.stop());
    this.video.srcObject = this.stream = null;
  }
}
