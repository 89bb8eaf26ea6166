// The dashboard: a head with what counts now, cards with curves, and what was done and what went wrong.

const TASKS = ["var(--orange)", "var(--sky)", "var(--green)", "var(--purple)", "var(--red)", "var(--yellow)"];
const LAGS = [0, 1, 2, 4, 8, 16, 32, 64];
const MARKED = new Set(["set", "scale", "imagined_share"]);

function render({ model, el }) {
  const root = h("div", { class: "accerl dashboard", tabindex: -1 });
  el.append(root);
  let lines = model.isFrozen ? (model.get("lines") ?? []) : [];
  let axis = "wall_s";
  const draw = () => drawAll(root, model, lines, axis, (chosen) => ((axis = chosen), draw()));
  const onMessage = (message) => {
    if (message.kind === "all") lines = message.lines;
    else if (message.kind === "lines") lines = lines.concat(message.lines);
    draw();
  };
  const traits = ["state", "reason", "incidents", "events", "evaluations", "title"].map((name) => `change:${name}`);
  model.on("msg:custom", onMessage);
  for (const name of traits) model.on(name, draw);
  if (!model.isFrozen) model.send({ kind: "hello" });
  draw();
  return () => {
    model.off("msg:custom", onMessage);
    for (const name of traits) model.off(name, draw);
  };
}

function drawAll(root, model, lines, axis, choose) {
  const open = new Set([...root.querySelectorAll("details[open]")].map((each) => each.className));
  const focused = root.contains(document.activeElement) ? document.activeElement.className : "";
  const last = lines.at(-1) ?? {};
  const marks = (model.get("events") ?? []).filter((event) => Object.keys(event).some((key) => MARKED.has(key)));
  const context = { lines, axis, marks };
  const cards = [successCard(context), lagCard(last), taskCard(last), ...model.get("panels").map((panel) => panelCard(panel, context))];
  const parts = [
    head(model, last, axis, choose),
    advice(last),
    h("div", { class: "cards" }, ...cards.filter(Boolean)),
    list("incidents", "incidents", model.get("incidents"), incidentText),
    list("events", "changes while it went on", model.get("events"), eventText),
    list("evaluations", "evaluations", model.get("evaluations"), evaluationText),
  ];
  root.replaceChildren(...parts.filter(Boolean));
  for (const each of root.querySelectorAll("details")) if (open.has(each.className)) each.open = true;
  if (focused) root.getElementsByClassName(focused)[0]?.focus();
  Object.assign(root.dataset, {
    lines: lines.length,
    state: model.get("state"),
    updates: last.updates ?? 0,
    events: (model.get("events") ?? []).length,
    incidents: (model.get("incidents") ?? []).length,
  });
}

function head(model, last, axis, choose) {
  const state = model.get("state");
  const figure = (value, label) => h("div", { class: "figure" }, h("b", {}, value), h("span", { class: "faint" }, label));
  const select = h("select", { class: "axis-choice", "aria-label": "horizontal axis" });
  for (const [value, label] of [["wall_s", "seconds"], ["decisions", "decisions"], ["updates", "updates"]])
    select.append(h("option", { value, selected: value === axis }, `over ${label}`));
  select.addEventListener("change", () => choose(select.value));
  const interval = last.success_low == null ? "" : ` [${share(last.success_low)}, ${share(last.success_high)}]`;
  return h(
    "div",
    { class: "head" },
    h("div", { class: `state ${state}` }, h("b", {}, model.get("title")), h("span", {}, state), select),
    figure(last.success == null ? "–" : share(last.success) + interval, "success, rolling"),
    figure(short(last.decisions), `decisions · ${short(last.decisions_per_s)}/s`),
    figure(short(last.env_steps), `environment steps · ${short(last.env_steps_per_s)}/s`),
    figure(short(last.updates), `updates · ${short(last.trained_decisions_per_s)} decisions/s`),
    figure(duration(last.wall_s), "training"),
    figure(short(last.discarded_decisions), "decisions discarded"),
    last.imagined_decisions == null ? null : figure(short(last.imagined_decisions), `imagined · horizon ${short(last.imagined_horizon)}`),
    figure(`${short(last.num_workers)} · ${short(last.num_services)} · ${short(last.num_shards)}`, "rollout · inference · replay"),
    model.get("reason") ? h("div", { class: "reason", role: "alert" }, model.get("reason")) : null,
  );
}

const advice = (last) => (last.advice ? h("div", { class: "advice", role: "status" }, h("b", {}, "Limit: "), last.advice) : null);
const share = (value) => value.toFixed(2).replace(/^0\./, ".");

function duration(seconds) {
  if (seconds == null) return "–";
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.round(seconds)} s`;
}

// --- cards

function card(title, explanation, ...content) {
  return h("figure", { class: "card", title: explanation || null }, h("figcaption", {}, title), ...content);
}

function plotted(series, context, options = {}) {
  const marks = context.marks.map((event) => place(event, context)).filter((x) => x != null);
  const drawn = chart(series, { width: 330, height: 140, ...options });
  const xs = series.flatMap((each) => each.x);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  for (const x of marks) {
    if (!(x >= low && x <= high) || high === low) continue;
    const at = 38 + ((x - low) / (high - low)) * (330 - 46);
    drawn.append(s("line", { x1: at, x2: at, y1: 8, y2: 122, stroke: "var(--purple)", "stroke-dasharray": "2 3" }));
  }
  return drawn;
}

/** Where on the present axis something happened: at the first line after it. */
function place(event, { lines, axis }) {
  return lines.find((line) => line.time >= event.time)?.[axis];
}

function column(lines, axis, read) {
  const kept = lines.filter((line) => line[axis] != null && read(line) != null);
  return { x: kept.map((line) => line[axis]), y: kept.map(read) };
}

function successCard(context) {
  const { lines, axis } = context;
  if (!lines.some((line) => line.success != null)) return null;
  const tasks = [...new Set(lines.flatMap((line) => Object.keys(line.success_by_task ?? {})))].sort();
  const series = tasks.map((task, index) => ({
    label: task,
    colour: TASKS[index % TASKS.length],
    ...column(lines, axis, (line) => line.success_by_task?.[task]),
  }));
  const mean = column(lines, axis, (line) => line.success);
  const low = column(lines, axis, (line) => line.success_low).y;
  const high = column(lines, axis, (line) => line.success_high).y;
  const whole = { label: "mean over tasks", colour: "var(--blue)", width: 3, ...mean };
  if (low.length === mean.y.length) Object.assign(whole, { low, high });
  const shown = tasks.length > 8 ? [whole] : [...series, whole];
  return card("success", "Rolling, of the newest 100 episodes of each task.", plotted(shown, context, { y: [0, 1] }), legend(shown));
}

/** Each value with its neighbours, `width` of them. */
function smoothed(values, width) {
  const reach = Math.floor(width / 2);
  return values.map((_, index) => {
    const near = values.slice(Math.max(0, index - reach), index + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

function panelCard(panel, context) {
  const series = panel.curves
    .map(({ key, label, colour }) => {
      const { x, y } = column(context.lines, context.axis, (line) => line[key]);
      return { label, colour: `var(--${colour})`, x, y: smoothed(y, panel.smooth) };
    })
    .filter((each) => each.y.length);
  if (!series.length) return null;
  const values = series.flatMap((each) => each.y);
  const [low, high] = [panel.low ?? Math.min(...values), panel.high ?? Math.max(...values)];
  const y = low < high ? [low, high] : undefined;
  return card(panel.title, panel.explanation, plotted(series, context, { y }), legend(series.map(withNow)));
}

const withNow = (each) => ({ ...each, label: `${each.label} ${short(each.y.at(-1))}` });

function lagCard(last) {
  const shares = LAGS.map((low) => last[`policy_lag_share_${low}`]);
  if (shares.some((value) => value == null)) return null;
  const names = LAGS.map((low, index) => (index === LAGS.length - 1 ? `${low}+` : LAGS[index + 1] - low > 1 ? `${low}–${LAGS[index + 1] - 1}` : `${low}`));
  return card("policy lag now", "Share of the decisions trained on, by versions.", bars(names, shares));
}

function taskCard(last) {
  const tasks = Object.keys(last.task_probability ?? {}).sort();
  if (tasks.length < 2) return null;
  const busiest = [...tasks].sort((a, b) => last.task_probability[b] - last.task_probability[a]).slice(0, 10);
  const names = busiest.map((task) => ((last.quarantined ?? []).includes(task) ? `${task} (quarantine)` : task));
  return card("tasks played", "Dynamic weighted resampling: those that fail are played more.", bars(names, busiest.map((task) => last.task_probability[task])));
}

function bars(names, shares) {
  const top = Math.max(...shares, 1e-9);
  const row = (name, index) =>
    h(
      "div",
      { class: "bar" },
      h("span", { class: "faint name", title: name }, name),
      h("span", { class: "track" }, h("span", { class: "fill", style: `width:${(100 * shares[index]) / top}%` })),
      h("span", { class: "value" }, share(shares[index])),
    );
  return h("div", { class: "bars" }, ...names.map(row));
}

// --- what happened

function list(name, label, entries, text) {
  if (!entries?.length) return null;
  const items = [...entries].reverse().map((entry) => h("li", {}, h("span", { class: "faint" }, clock(entry.time)), " ", text(entry)));
  return h("details", { class: name, open: name === "incidents" }, h("summary", {}, `${entries.length} ${label}`), h("ul", {}, ...items));
}

const clock = (time) => (time ? new Date(1000 * time).toLocaleTimeString() : "");
const incidentText = ({ role, action, reason }) => [role, action, reason].filter(Boolean).join(": ");
const evaluationText = ({ updates, rate, interval, episodes, greedy }) =>
  `after ${updates} updates: ${share(rate)} [${interval.map(share).join(", ")}] of ${episodes} episodes, ${greedy ? "greedy" : "sampled"}`;

function eventText(event) {
  const by = event.by ? ` (${event.by})` : "";
  if (event.set) return `${event.set}: ${event.from ?? "?"} → ${event.to}${by}`;
  if (event.scale) return `${Object.entries(event.scale).map(([kind, number]) => `${number > 0 ? "+" : ""}${number} ${kind}`).join(", ")}${by}`;
  if (event.imagined_share != null) return `imagined share ${event.imagined_share}: ${event.reason}`;
  return Object.entries(event).filter(([key]) => !["time", "decisions"].includes(key)).map((pair) => pair.join(" ")).join(", ");
}
