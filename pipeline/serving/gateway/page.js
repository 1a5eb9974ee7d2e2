"use strict";
const EVERY_MS = 2000, PATIENCE_MS = 5000, FAST = 14.4;
const shown = new Map();

const ms = value => value === null ? "–" : value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
const rate = value => value === null ? "–" : value.toFixed(2);
const percent = value => value === null ? "–" : `${Math.round(value * 100)} %`;
const cell = (text, kind = "") => ({ text: String(text), kind });
const number = (text, kind = "") => cell(text, `number ${kind}`);

function element(name, { text, kind }) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// What did not change stays as it is, so that a selection or a screen reader's place is not lost.
function put(id, content, make) {
  const key = JSON.stringify(content);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  document.getElementById(id).replaceChildren(...content.flatMap(make));
}

function rows(id, content) {
  const lines = content.length ? content : [[cell("none", "muted")]];
  put(id, lines, ([first, ...others]) => {
    const row = document.createElement("tr"), head = element("th", first);
    head.scope = "row";
    row.append(head, ...others.map(each => element("td", each)));
    return [row];
  });
}

function standing(burn) {
  if (burn.burn_1h === null) return cell("no requests", "muted");
  if (burn.burn_5m > FAST && burn.burn_1h > FAST) return cell("burns fast", "bad");
  return burn.burn_1h > 1 ? cell("missed", "weak") : cell("kept", "good");
}

function promise({ pool, share, within_ms }) {
  const answers = `${+(share * 100).toFixed(3)} % of ${pool ?? "all"} ${within_ms === null ? "requests" : "answers"}`;
  return within_ms === null ? `${answers} are answered` : `${answers} begin within ${within_ms} ms`;
}

function state(text, kind) {
  put("state", [cell(text)], each => [each.text]);
  document.getElementById("state").className = `state ${kind}`;
}

function show(told) {
  const { release } = told;
  state(told.ready ? "ready" : "not ready", told.ready ? "good" : "bad");
  document.title = `Gateway: ${told.ready ? "ready" : "not ready"}`;
  put("problems", [...new Set([...told.problems, release.problem].filter(Boolean))], text => [element("li", { text })]);
  put("facts", [
    ["Release", release.version ? `${release.line} ${release.version} (${release.channel})` : "none"],
    ["Expires", release.expires?.slice(0, 10) ?? "–"],
    ["Policy", told.policy_version],
    ["Prompts counted by", told.prompts_counted_by],
    ["At work", told.in_flight],
    ["Waiting", told.waiting],
  ], ([name, value]) => {
    const pair = document.createElement("div");
    pair.append(element("dt", { text: name }), element("dd", { text: String(value) }));
    return [pair];
  });
  rows("objectives", told.objectives.map(each => [
    cell(each.objective), standing(each), number(rate(each.burn_5m)), number(rate(each.burn_1h)), cell(promise(each)),
  ]));
  rows("pools", told.pools.filter(pool => pool.endpoints.length).map(pool => {
    const usable = pool.endpoints.filter(each => each.usable).length;
    const kind = usable === pool.endpoints.length ? "good" : usable ? "weak" : "bad";
    return [cell(pool.pool), cell(`${usable} of ${pool.endpoints.length}`, kind), number(pool.answers), number(ms(pool.p50_ms)), number(ms(pool.p95_ms))];
  }));
  rows("endpoints", told.pools.flatMap(pool => pool.endpoints.map(each => [
    cell(each.name), cell(pool.pool), each.usable ? cell("yes", "good") : cell("no", "bad"), cell(each.state),
    cell(each.circuit.replace("_", " "), each.circuit === "closed" ? "" : "bad"), cell(each.variant ?? "–"),
    number(each.release ?? "–"), number(ms(each.round_trip_ms)), number(`${each.busy} of ${each.slots}`),
    number(each.queued), number(percent(each.cpu)), cell([...each.throttled, each.problem].filter(Boolean).join("; "), "long"),
  ])));
  rows("reasons", told.reasons.map(each => [cell(each.reason), cell(each.pool), number(each.count)]));
  rows("decisions", told.decisions.map(each => [
    number(`${Math.round(each.ago_s)} s`), cell(each.kind), cell(each.endpoint ?? "–"), cell(each.reason),
    cell(each.degraded ? "degraded" : each.outcome, each.outcome !== "answered" || each.degraded ? "weak" : ""),
    number(ms(each.outcome === "answered" ? each.begun_ms : null)),
  ]));
}

async function look() {
  try {
    const answer = await fetch(location.pathname, {
      headers: { accept: "application/json" }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS),
    });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch {
    state("no answer: what is below is old", "bad");
    document.title = "Gateway: no answer";
  }
}

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
watch();
