// The controls: each sends what it wants and shows, beside itself, what came of it.

const LIVE = ["starting", "running", "paused"];

function render({ model, el }) {
  const root = h("div", { class: "accerl controls" });
  el.append(root);
  const drafts = new Map();
  let asksToStop = false;
  const act = (action, args = {}) => {
    asksToStop = false;
    model.send({ kind: "do", action, arguments: args });
  };
  const draw = () => {
    const focused = root.contains(document.activeElement) ? document.activeElement.dataset.control : null;
    const askStop = () => {
      if (asksToStop) return act("stop");
      asksToStop = true;
      draw();
    };
    root.replaceChildren(
      runRow(model, act, asksToStop, askStop),
      h("div", { class: "columns" }, processTable(model, act), knobTable(model, act, drafts)),
    );
    if (focused) root.querySelector(`[data-control="${focused}"]`)?.focus();
    Object.assign(root.dataset, { state: model.get("state"), busy: model.get("busy").join(",") });
  };
  const traits = ["state", "knobs", "processes", "said", "busy", "title"].map((name) => `change:${name}`);
  for (const name of traits) model.on(name, draw);
  const looking = setInterval(() => model.isFrozen || model.send({ kind: "look" }), 4000);
  if (!model.isFrozen) model.send({ kind: "hello" });
  draw();
  return () => {
    clearInterval(looking);
    for (const name of traits) model.off(name, draw);
  };
}

function button(model, control, label, click, extra = {}) {
  const off = model.isFrozen || !LIVE.includes(model.get("state")) || model.get("busy").includes(control);
  return h("button", { "data-control": control, disabled: off, click, ...extra }, label);
}

function runRow(model, act, asksToStop, askStop) {
  const paused = model.get("state") === "paused";
  const episodes = h("input", { type: "number", min: 1, value: 10, class: "episodes", "aria-label": "episodes of each task" });
  const greedy = h("input", { type: "checkbox", "aria-label": "greedy" });
  const evaluate = () => act("evaluate", { episodes: +episodes.value, greedy: greedy.checked });
  return h(
    "div",
    { class: "row" },
    h("b", {}, model.get("title")),
    h("span", { class: "faint" }, model.get("state")),
    paused ? button(model, "resume", "▶ resume", () => act("resume")) : button(model, "pause", "❚❚ pause", () => act("pause")),
    button(model, "checkpoint", "save a checkpoint", () => act("checkpoint")),
    button(model, "evaluate", "evaluate", evaluate),
    h("label", { class: "faint" }, episodes, " episodes a task"),
    h("label", { class: "faint" }, greedy, " greedy"),
    button(model, "stop", asksToStop ? "really stop?" : "stop", askStop, { class: asksToStop ? "stop asks" : "stop" }),
    ...["pause", "resume", "checkpoint", "evaluate", "stop"].map((control) => outcome(model, control)),
  );
}

function outcome(model, control) {
  if (model.get("busy").includes(control)) return h("span", { class: "faint", role: "status" }, `${control} …`);
  const said = model.get("said")[control];
  return said ? h("span", { class: said.ok ? "ok" : "wrong", role: said.ok ? "status" : "alert" }, said.text) : null;
}

function processTable(model, act) {
  const rows = Object.entries(model.get("processes")).map(([kind, number]) =>
    h(
      "div",
      { class: "row" },
      h("span", { class: "name" }, kind),
      button(model, kind, "−", () => act("scale", { kind, by: -1 }), { "aria-label": `one ${kind} less` }),
      h("b", {}, `${number}`),
      button(model, kind, "+", () => act("scale", { kind, by: 1 }), { "aria-label": `one ${kind} more` }),
      outcome(model, kind),
    ),
  );
  return h("div", { class: "processes" }, h("div", { class: "faint" }, "processes"), ...rows);
}

function knobTable(model, act, drafts) {
  const rows = model.get("knobs").map(({ name, section, value, explanation }) => {
    const input = h("input", { type: "number", step: "any", value: drafts.get(name) ?? value, "aria-label": name, "data-control": name });
    input.disabled = model.isFrozen || !LIVE.includes(model.get("state"));
    input.addEventListener("input", () => drafts.set(name, input.value));
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") drafts.delete(name);
      if (event.key !== "Enter" || input.value === "") return;
      drafts.delete(name);
      act("set", { name, value: +input.value });
    });
    return h(
      "div",
      { class: "row", title: explanation },
      h("span", { class: "name" }, h("span", { class: "faint" }, `${section}.`), name),
      input,
      drafts.has(name) ? h("span", { class: "faint" }, "⏎ to set") : outcome(model, name),
    );
  });
  return h("div", { class: "knobs" }, h("div", { class: "faint" }, "knobs: type a value, ⏎"), ...rows);
}
