// Search in a site that is opened from a folder. Browsers start no worker from a file, hence a hidden frame
// takes its place: its window is the global scope of the worker's script.
const load = (scope, url) =>
  new Promise((loaded) => {
    const script = scope.document.createElement("script");
    script.src = url;
    script.onload = loaded;
    scope.document.body.append(script);
  });

class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.scope = frame.contentWindow;
    this.scope.document.open();
    this.scope.document.write("<body>");
    this.scope.document.close();
    this.scope.importScripts = (...urls) =>
      urls.reduce((earlier, next) => earlier.then(() => load(this.scope, next)), Promise.resolve());
    this.scope.postMessage = (data) => {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      this.onmessage?.(event);
    };
    this.started = load(this.scope, url);
  }

  postMessage(data) {
    this.started.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })));
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker;
