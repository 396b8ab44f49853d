// SPDX-License-Identifier: GPL-2.0-or-later
// The front end of console_widget.py. `Terminal` and `FitAddon` are xterm.js's, put before this text.
//
// Bytes travel as binary buffers, each with its place in the guest's output, so that what comes twice is
// dropped and a gap is seen. They are kept here as well: a second view of the same widget begins with them.

const KEPT_BYTES = 1 << 20;

class Stream {
  constructor(model) {
    this.model = model;
    this.at = null; // the place of the next byte
    this.kept = [];
    this.size = 0;
    this.views = new Set();
    this.said = ""; // how the machine ended
    model.on("msg:custom", (message, buffers) => this.hear(message, buffers));
    model.send({ kind: "ready" });
  }

  hear(message, buffers) {
    if (message.kind === "output") {
      let bytes = new Uint8Array(buffers[0].buffer, buffers[0].byteOffset, buffers[0].byteLength);
      if (this.at !== null && message.at < this.at) bytes = bytes.slice(this.at - message.at);
      this.at = message.at + buffers[0].byteLength;
      if (bytes.length > 0) this.keep(bytes);
      for (const view of this.views) view.write(bytes);
      this.model.send({ kind: "taken", at: this.at });
    } else if (message.kind === "ended") {
      this.said = message.text;
      for (const view of this.views) view.write(`\r\n[${this.said}]\r\n`);
    }
  }

  keep(bytes) {
    this.kept.push(bytes);
    this.size += bytes.length;
    while (this.size > KEPT_BYTES) this.size -= this.kept.shift().length;
  }
}

const streams = new WeakMap();

function streamOf(model) {
  if (!streams.has(model)) streams.set(model, new Stream(model));
  return streams.get(model);
}

export default {
  initialize({ model }) {
    streamOf(model);
  },

  render({ model, el }) {
    const stream = streamOf(model);
    const terminal = new Terminal({
      cols: model.get("columns"),
      rows: model.get("rows"),
      scrollback: 10000,
      convertEol: false,
      cursorBlink: true,
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    el.classList.add("coremesh-console");
    terminal.open(el);
    for (const bytes of stream.kept) terminal.write(bytes);
    if (stream.said) terminal.write(`\r\n[${stream.said}]\r\n`);
    stream.views.add(terminal);
    terminal.onData((text) => model.send({ kind: "typed", text }));
    terminal.onResize(({ cols, rows }) => model.send({ kind: "resized", columns: cols, rows }));
    // Keys belong to the terminal, not to the notebook's shortcuts.
    el.addEventListener("keydown", (event) => event.stopPropagation());
    const watch =
      typeof ResizeObserver === "undefined"
        ? null
        : new ResizeObserver(() => {
            const wanted = fit.proposeDimensions();
            if (wanted && wanted.cols > 1) terminal.resize(wanted.cols, model.get("rows"));
          });
    if (watch) watch.observe(el);
    return () => {
      if (watch) watch.disconnect();
      stream.views.delete(terminal);
      terminal.dispose();
    };
  },
};
