// The trajectory viewer: a list that can be narrowed, one or two episodes, one clock for both.

const GROUPS = [
  { curves: ["reward", "value", "success probability", "success", "judged real"], title: "" },
  { curves: ["surprise"], title: "surprise: −log p of a token, nats" },
  { curves: ["PSNR"], title: "PSNR, dB" },
  { curves: ["proprio error"], title: "proprioception, root mean square error" },
];
const CURVE_COLOURS = {
  reward: "var(--green)",
  value: "var(--blue)",
  "success probability": "var(--orange)",
  success: "var(--ink)",
  "judged real": "var(--sky)",
  surprise: "var(--purple)",
  PSNR: "var(--red)",
  "proprio error": "var(--red)",
};
const OUTCOMES = { success: "✓", failure: "✗", open: "…", "same outcome": "=", "other outcome": "≠" };
const SHORT = { real: "", imagined: "dream ", audit: "audit " };
const FRAMES_PER_S = 6;

function render({ model, el }) {
  const viewer = new Viewer(model);
  el.append(viewer.root);
  return () => viewer.close();
}

class Viewer {
  constructor(model) {
    this.model = model;
    this.episodes = new Map();
    this.filter = { task: "", source: "", outcome: "", version: "" };
    this.shown = [];
    this.frame = 0;
    this.follows = true;
    this.speed = 1;
    this.build();
    this.listen();
    if (model.isFrozen) this.take(model.get("episodes") ?? []);
    else model.send({ kind: "hello" });
    this.draw();
  }

  // --- what comes from the kernel

  listen() {
    this.onMessage = (message, buffers) => {
      const { kind, episodes = [], gone = [] } = message;
      if (kind === "all") this.episodes.clear();
      if (kind === "all" || kind === "episodes") {
        for (const number of gone) this.episodes.delete(number);
        this.take(episodes.map((episode, index) => ({ ...episode, jpeg: buffers[index] })));
      } else if (kind === "file") download(buffers[0], message.name, message.type);
      else if (kind === "said") this.say(message.text);
      else if (kind === "audited") {
        this.say("");
        this.show([message.film]);
      }
    };
    this.onState = () => this.draw();
    this.model.on("msg:custom", this.onMessage);
    for (const name of ["state", "title"]) this.model.on(`change:${name}`, this.onState);
    this.onShown = () => this.show(this.model.get("shown"), false);
    this.model.on("change:shown", this.onShown);
    const wanted = this.model.get("shown") ?? [];
    if (wanted.length) [this.shown, this.follows] = [[...wanted], false];
  }

  take(episodes) {
    for (const episode of episodes) {
      const jpeg = new Blob([episode.jpeg], { type: "image/jpeg" });
      this.episodes.set(episode.number, { ...episode, jpeg, picture: null });
    }
    if (this.follows || !this.shown.some((number) => this.episodes.has(number))) this.showNewest();
    else for (const number of this.shown) this.load(number);
    this.draw();
  }

  close() {
    clearInterval(this.timer);
    this.model.off("msg:custom", this.onMessage);
    for (const name of ["state", "title"]) this.model.off(`change:${name}`, this.onState);
    this.model.off("change:shown", this.onShown);
  }

  // --- what is looked at

  get matching() {
    const { task, source, outcome, version } = this.filter;
    return [...this.episodes.values()].filter(
      (each) =>
        (!task || each.task === task) &&
        (!source || each.source === source) &&
        (!outcome || each.outcome === outcome) &&
        (version === "" || each.versions[1] >= +version),
    );
  }

  get length() {
    return Math.max(1, ...this.shown.map((number) => this.episodes.get(number)?.strip.frames ?? 1));
  }

  showNewest() {
    const newest = this.matching.at(-1);
    if (newest && newest.number !== this.shown[0]) this.show([newest.number], true, true);
  }

  show(numbers, tell = true, follows = false) {
    this.shown = numbers.filter((number) => this.episodes.has(number)).slice(0, 2);
    this.follows = follows;
    this.frame = follows && !this.timer ? this.length - 1 : 0;
    if (tell && !follows && !this.model.isFrozen) {
      this.model.set("shown", this.shown);
      this.model.save_changes();
    }
    for (const number of this.shown) this.load(number);
    this.draw();
  }

  async load(number) {
    const episode = this.episodes.get(number);
    if (!episode || episode.picture) return;
    episode.picture = await createImageBitmap(episode.jpeg);
    this.drawFrames();
  }

  seek(frame) {
    this.frame = Math.min(Math.max(Math.round(frame), 0), this.length - 1);
    this.drawFrames();
  }

  play(isPlaying = !this.timer) {
    clearInterval(this.timer);
    this.timer = null;
    if (isPlaying) {
      if (this.frame >= this.length - 1) this.frame = 0;
      this.timer = setInterval(() => this.step(), 1000 / (FRAMES_PER_S * this.speed));
    }
    this.drawFrames();
  }

  step() {
    if (this.frame < this.length - 1) this.seek(this.frame + 1);
    else if (this.loops.checked) this.seek(0);
    else this.play(false);
  }

  // --- the page

  build() {
    this.head = h("div", { class: "head" });
    this.list = h("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "episodes" });
    this.list.addEventListener("keydown", (event) => this.onListKey(event));
    this.panes = h("div", { class: "panes" });
    this.playButton = h("button", { class: "play", "aria-label": "play", title: "space", click: () => this.play() }, "▶");
    this.slider = h("input", { type: "range", min: 0, value: 0, "aria-label": "frame", class: "slider" });
    this.slider.addEventListener("input", () => this.seek(+this.slider.value));
    this.position = h("span", { class: "faint position" });
    this.loops = h("input", { type: "checkbox", checked: true, id: `loop-${Math.random()}` });
    const speeds = [0.25, 0.5, 1, 2, 4].map((speed) => h("option", { value: speed, selected: speed === 1 }, `${speed}×`));
    const speed = h("select", { "aria-label": "speed" }, ...speeds);
    speed.addEventListener("change", () => {
      this.speed = +speed.value;
      if (this.timer) this.play(true);
    });
    const transport = h(
      "div",
      { class: "transport" },
      this.playButton,
      this.slider,
      this.position,
      speed,
      h("label", {}, this.loops, " loop"),
    );
    this.note = h("div", { class: "note", role: "status" });
    const right = h("div", { class: "right" }, this.panes, transport, this.note);
    this.root = h("div", { class: "accerl viewer", tabindex: -1 }, this.head, h("div", { class: "body" }, this.list, right));
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.buildFilters();
  }

  buildFilters() {
    this.selects = {};
    this.count = h("span", { class: "faint" });
    this.stateText = h("span", { class: "state" });
    this.followBox = h("input", { type: "checkbox", "aria-label": "follow the newest" });
    this.followBox.addEventListener("change", () => {
      this.follows = this.followBox.checked;
      if (this.follows) {
        this.shown = [];
        this.showNewest();
      }
      this.draw();
    });
    const parts = ["task", "source", "outcome", "version"].map((name) => {
      const select = h("select", { "aria-label": name, class: `filter-${name}` });
      select.addEventListener("change", () => {
        this.filter[name] = select.value;
        if (!this.matching.some((each) => each.number === this.shown[0])) this.showNewest();
        this.draw();
      });
      this.selects[name] = select;
      return select;
    });
    this.head.append(this.stateText, ...parts, h("label", {}, this.followBox, " newest"), this.count);
  }

  draw() {
    const all = [...this.episodes.values()];
    const values = {
      task: [...new Set(all.map((each) => each.task))].sort(),
      source: [...new Set(all.map((each) => each.source))].sort(),
      outcome: [...new Set(all.map((each) => each.outcome))].sort(),
      version: [...new Set(all.map((each) => each.versions[1]))].sort((a, b) => a - b),
    };
    const names = { task: "all tasks", source: "real and imagined", outcome: "all outcomes", version: "all versions" };
    for (const [name, select] of Object.entries(this.selects)) {
      const label = (value) => (name === "version" ? `from version ${value}` : value);
      const options = values[name].map((value) => h("option", { value }, label(value)));
      select.replaceChildren(h("option", { value: "" }, names[name]), ...options);
      select.value = this.filter[name];
    }
    const matching = this.matching;
    this.count.textContent = `${matching.length} of ${all.length}`;
    this.stateText.textContent = [this.model.get("title"), this.model.get("state")].filter(Boolean).join(" · ");
    this.followBox.checked = this.follows;
    this.drawList(matching);
    this.drawPanes();
    Object.assign(this.root.dataset, {
      count: matching.length,
      total: all.length,
      shown: this.shown.join(","),
      state: this.model.get("state") ?? "",
    });
  }

  drawList(matching) {
    const row = (each) => {
      const place = this.shown.indexOf(each.number);
      const item = h(
        "div",
        {
          class: `item ${each.source}`,
          role: "option",
          "aria-selected": place === 0 ? "true" : "false",
          "data-number": each.number,
          click: (event) => this.show(event.shiftKey ? [this.shown[0], each.number] : [each.number]),
        },
        h("span", { class: `mark ${each.outcome.replace(" ", "-")}`, title: each.outcome }, OUTCOMES[each.outcome]),
        h("span", { class: "task" }, each.task),
        h("span", { class: "faint" }, `${SHORT[each.source]}v${each.versions[1]}`),
      );
      const beside = (event) => {
        event.stopPropagation();
        this.show([this.shown[0], each.number]);
      };
      item.append(h("button", { class: "beside", tabindex: -1, title: "show beside (c)", "aria-label": "beside", click: beside }, "+"));
      return item;
    };
    const top = this.list.scrollTop;
    this.list.replaceChildren(...[...matching].reverse().map(row));
    this.list.scrollTop = top;
  }

  drawPanes() {
    this.panes.replaceChildren(...this.shown.map((number) => this.pane(this.episodes.get(number))).filter(Boolean));
    if (!this.shown.length) this.panes.append(h("div", { class: "faint empty" }, "no trajectory yet"));
    this.drawFrames();
  }

  pane(episode) {
    if (!episode) return null;
    const { strip } = episode;
    const canvas = h("canvas", { width: strip.width, height: strip.height, role: "img", "aria-label": episode.instruction });
    canvas.style.width = `${strip.width * Math.max(1, Math.floor(Math.min(320 / strip.width, 512 / strip.height)))}px`;
    const versions = episode.versions[0] === episode.versions[1] ? episode.versions[1] : episode.versions.join("–");
    const isAudit = episode.source === "audit";
    const origin = isAudit ? "imagined above, simulator below" : episode.source;
    const facts = [origin, episode.outcome, `version ${versions}`, `${episode.decisions} decisions`];
    if (!isAudit) facts.push(`return ${short(episode.return)}`);
    const second = this.shown.indexOf(episode.number) === 1;
    const close = second ? h("button", { class: "close", "aria-label": "close", click: () => this.show([this.shown[0]]) }, "×") : null;
    const charts = h("div", { class: "charts" });
    return h(
      "section",
      { class: `pane ${episode.source}`, "data-number": episode.number },
      h("div", { class: "heading" }, h("b", {}, `“${episode.instruction}”`), close),
      h("div", { class: "faint" }, facts.join(" · ")),
      canvas,
      charts,
      this.buttons(episode),
    );
  }

  buttons(episode) {
    const ask = (message) => () => {
      this.say("…");
      this.model.send({ ...message, number: episode.number });
    };
    const row = h("div", { class: "buttons" });
    row.append(h("button", { click: () => this.savePicture(episode) }, "PNG frame"));
    if (this.model.isFrozen) return row;
    for (const [format, label] of [["mp4", "mp4"], ["gif", "GIF"], ["png", "PNG"], ["safetensors", "raw"]])
      row.append(h("button", { "data-export": format, click: ask({ kind: "export", format }) }, label));
    if (episode.source === "real") row.append(h("button", { class: "audit", click: ask({ kind: "audit" }) }, "dream audit"));
    return row;
  }

  drawFrames() {
    const last = this.length - 1;
    this.frame = Math.min(this.frame, last);
    this.slider.max = last;
    this.slider.value = this.frame;
    this.position.textContent = `${this.frame} / ${last}`;
    this.playButton.textContent = this.timer ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-label", this.timer ? "pause" : "play");
    Object.assign(this.root.dataset, { frame: this.frame, playing: this.timer ? "yes" : "no" });
    for (const pane of this.panes.querySelectorAll(".pane")) {
      const episode = this.episodes.get(+pane.dataset.number);
      if (!episode) continue;
      this.drawFrame(pane.querySelector("canvas"), episode);
      pane.querySelector(".charts").replaceChildren(...this.charts(episode));
    }
  }

  drawFrame(canvas, { picture, strip }) {
    if (!picture) return;
    const frame = Math.min(this.frame, strip.frames - 1);
    const [x, y] = [(frame % strip.columns) * strip.width, Math.floor(frame / strip.columns) * strip.height];
    const context = canvas.getContext("2d");
    context.drawImage(picture, x, y, strip.width, strip.height, 0, 0, strip.width, strip.height);
    canvas.dataset.drawn = frame;
  }

  charts(episode) {
    const made = [];
    for (const { curves, title } of GROUPS) {
      const names = curves.filter((name) => episode.curves[name]);
      if (!names.length) continue;
      const series = names.map((name) => {
        const y = episode.curves[name];
        return { label: name, colour: CURVE_COLOURS[name], x: y.map((_, index) => index), y };
      });
      const x = [0, Math.max(1, episode.strip.frames - 1)];
      const options = { width: 340, height: title ? 84 : 118, x, title, cursor: Math.min(this.frame, x[1]) };
      made.push(chart(series, { ...options, onPick: (frame) => this.seek(frame) }));
      if (!title) made.push(legend(series.map((each) => ({ ...each, label: this.labelled(each) }))));
    }
    return made;
  }

  labelled({ label, y }) {
    const now = y[Math.min(this.frame, y.length - 1)];
    return now == null ? label : `${label} ${short(now)}`;
  }

  say(text) {
    this.note.textContent = text;
  }

  savePicture(episode) {
    const canvas = this.panes.querySelector(`[data-number="${episode.number}"] canvas`);
    canvas.toBlob((blob) => blob.arrayBuffer().then((content) => download(content, `${episode.task}-${this.frame}.png`, "image/png")));
  }

  // --- keys

  onKey(event) {
    if (["SELECT", "INPUT", "BUTTON"].includes(event.target.tagName) && event.key !== "Escape") {
      if (!(event.target === this.slider && event.key === " ")) return;
    }
    const moves = { ArrowLeft: this.frame - 1, ArrowRight: this.frame + 1, Home: 0, End: this.length - 1 };
    if (event.key === " ") this.play();
    else if (event.key in moves) this.seek(moves[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  onListKey(event) {
    const order = [...this.matching].reverse().map((each) => each.number);
    const place = order.indexOf(this.shown[0]);
    if (event.key === "ArrowDown" && place < order.length - 1) this.show([order[place + 1]]);
    else if (event.key === "ArrowUp" && place > 0) this.show([order[place - 1]]);
    else if (event.key === "c" && place < order.length - 1) this.show([this.shown[0], order[place + 1]]);
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  }
}

function download(content, name, type) {
  const link = h("a", { href: URL.createObjectURL(new Blob([content], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
