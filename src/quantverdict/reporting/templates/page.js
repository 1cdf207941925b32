"use strict";
// The page is complete without this. It only reads what stands in the page and writes text: no markup is ever parsed.
(() => {
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with its attributes (functions listen, true is present, null is left out) and children; text stays text. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}
const fill = (element, ...children) => { element.replaceChildren(...children.flat().filter((child) => child !== null)); return element; };
/** What an element says, without the links to itself. */
function words(element) {
  const copy = element.cloneNode(true);
  for (const extra of $$(".link, .sort-mark", copy)) extra.remove();
  for (const small of $$("small, i", copy)) small.prepend(" ");
  return copy.textContent.replace(/\s+/g, " ").trim();
}
const first = (element) => words(element.firstElementChild?.tagName === "BUTTON" ? element.firstElementChild : element);
const announce = (text) => { $("#said").textContent = text; };
document.body.append(el("div", {id: "said", class: "hidden", role: "status", "aria-live": "polite"}));

/** Puts text on the clipboard, also where there is no clipboard to ask. */
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", {class: "hidden"});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(`${what} copied`);
}

// Hints: one box, for a pointer or the focus.
const hint = $("#hint");
function showHint(target, text) {
  hint.textContent = text;
  hint.hidden = false;
  const box = target.getBoundingClientRect(), own = hint.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.x + box.width / 2 - own.width / 2), innerWidth - own.width - 8);
  const top = box.y - own.height - 8 < 8 ? box.bottom + 8 : box.y - own.height - 8;
  hint.style.left = `${left}px`;
  hint.style.top = `${top}px`;
}
const hideHint = () => { hint.hidden = true; };
function hinted(event) {
  const target = event.target.closest?.("[data-hint], table.heat td");
  const text = target && (target.dataset.hint || hintOfCell(target));
  if (text) showHint(target, text); else hideHint();
}
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, hinted);
for (const kind of ["focusout", "scroll"]) document.addEventListener(kind, hideHint, {capture: true, passive: true});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideHint(); });

// Charts: each mark can be reached by the arrow keys, a chart by the tab key.
for (const chart of $$("svg.chart")) {
  const marks = $$("g", chart).filter((g) => $(":scope > title", g));
  for (const [at, mark] of marks.entries()) {
    const title = $(":scope > title", mark);
    mark.dataset.hint = title.textContent;
    mark.setAttribute("aria-label", title.textContent);
    mark.setAttribute("role", "img");
    mark.setAttribute("tabindex", at ? "-1" : "0");
    title.remove();
  }
  if (marks.length) chart.setAttribute("role", "group");
  chart.addEventListener("keydown", (event) => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    const at = marks.indexOf(document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    focusOn(marks, (at + step + marks.length) % marks.length);
  });
}
/** Moves the one tab stop of a group. */
function focusOn(group, at) {
  for (const one of group) one.setAttribute("tabindex", "-1");
  group[at].setAttribute("tabindex", "0");
  group[at].focus();
}

// Tables: sort by a heading, filter by words and by what a column holds, copy what is shown.
const FACETS = new Set(["base model", "build", "format", "metric", "criterion", "outcome", "regime", "verdict", "action", "task"]);
const UNITS = {B: 1, kB: 1e3, MB: 1e6, GB: 1e9};
/** The first number of a cell, sizes in bytes; null where there is none. */
function number(text) {
  const found = /[−+-]?(?:\d[\d,]*\.?\d*|\.\d+|∞)(?:e[−-]?\d+)?/.exec(text);
  if (!found || /^not measured/.test(text)) return null;
  const value = Number(found[0].replace(/−/g, "-").replace(/,/g, "").replace("∞", "Infinity"));
  const unit = /^\s*(B|kB|MB|GB)\b/.exec(text.slice(found.index + found[0].length));
  return Number.isNaN(value) ? null : value * (unit ? UNITS[unit[1]] : 1);
}
const rowsOf = (table) => $$(":scope > tbody > tr:not(.group)", table);
function sortBy(table, at, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of $$("thead th", table)) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
    const keyed = rows.map((row) => ({row, text: words(row.cells[at]), value: number(words(row.cells[at]))}));
    const numeric = heading.classList.contains("num") || keyed.every(({value, text}) => value !== null || !text || text === "not measured");
    keyed.sort((a, b) => {
      if (!numeric) return (down ? -1 : 1) * a.text.localeCompare(b.text, undefined, {numeric: true});
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return (down ? -1 : 1) * (a.value - b.value);
    });
    body.append(...keyed.map(({row}) => row));
  }
  announce(`sorted by ${words(heading)}, ${down ? "descending" : "ascending"}`);
}
function csv(table) {
  const cell = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const safe = (text) => cell(/^[=+@\t\r]/.test(text) && !/^[+]\d/.test(text) ? `'${text}` : text);
  const rows = [$("thead tr", table), ...rowsOf(table).filter((row) => !row.hidden)];
  return rows.map((row) => [...row.cells].filter((one) => !one.hidden).map((one) => safe(words(one))).join(",")).join("\n") + "\n";
}
function tooled(table) {
  if (table.dataset.tools) return;
  table.dataset.tools = "yes";
  const heads = $$("thead th", table), rows = rowsOf(table);
  for (const [at, heading] of heads.entries()) {
    const button = el("button", {type: "button", class: "sort", click: () => sortBy(table, at, heading)});
    button.append(...heading.childNodes);
    heading.append(button);
  }
  const tools = el("div", {class: "tools"}), count = el("span", {class: "soft", "aria-live": "polite"});
  const search = el("input", {type: "search", placeholder: "filter rows", "aria-label": "filter rows", input: narrow});
  const facets = [];
  if (rows.length > 5) {
    tools.append(search);
    for (const [at, heading] of heads.entries()) {
      const name = first(heading);
      const values = FACETS.has(name) ? [...new Set(rows.map((row) => words(row.cells[at])))] : [];
      if (values.length > 1 && values.length <= 80) {
        const select = chooser(`any ${name}`, values, narrow);
        facets.push([at, select]);
        tools.append(select);
      }
    }
  }
  tools.append(el("button", {type: "button", click: () => copy(csv(table), "table")}, "Copy as CSV"), count);
  (table.closest(".scroll") || table).before(tools);
  function narrow() {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !(words(row).toLowerCase().includes(wanted) &&
        facets.every(([at, select]) => !select.value || words(row.cells[at]) === select.value));
      shown += !row.hidden;
    }
    for (const body of table.tBodies) body.hidden = [...body.rows].every((row) => row.hidden || row.classList.contains("group"));
    count.textContent = `${shown} of ${rows.length} rows`;
  }
}
function chooser(any, values, change, names = values) {
  const options = values.map((value, at) => el("option", {value}, names[at]));
  return el("select", {"aria-label": any, change}, el("option", {value: ""}, any), ...options);
}
for (const table of $$("table.plain, table.builds, table.study, #regimes table")) {
  const folded = table.closest("details:not([open])");
  if (folded) folded.addEventListener("toggle", () => tooled(table), {once: true});
  else tooled(table);
}

// The matrix: filters over all its tables, arrow keys, and a drawer behind each cell.
const heats = $$("table.heat");
const evidence = {worse: /\bworse/, better: /\bbetter/, "beyond the margin": /\b(?:worse|better)[345]/};
const cellsOf = (table) => rowsOf(table).filter((row) => !row.hidden && !row.parentNode.hidden)
  .map((row) => [...row.cells].slice(1).filter((cell) => !cell.hidden)).filter((row) => row.length);
function placeOf(cell) {
  const table = cell.closest("table"), head = $$("thead th", table)[cell.cellIndex], row = cell.parentNode.cells[0];
  return {model: table.dataset.model, build: head.dataset.build, metric: row.dataset.metric, label: words(row.firstChild.nodeType === 3 ? textOnly(row) : row), about: row.dataset.about, cell};
}
function textOnly(row) {
  const copy = row.cloneNode(true);
  for (const small of $$("small", copy)) small.remove();
  return copy;
}
function hintOfCell(cell) {
  if (cell.closest("tr").classList.contains("group")) return "";
  const {model, build, label} = placeOf(cell), parts = [`${build} of ${model}, ${label}: ${words(cell)}`];
  if (cell.dataset.n) parts.push(`n ${cell.dataset.n}`);
  return parts.join("; ");
}
function heatTools() {
  const tools = $('.tools[data-for="matrix"]');
  if (!tools) return;
  const models = heats.map((table) => table.dataset.model);
  const builds = [...new Set(heats.flatMap((table) => $$("thead th[data-build]", table).map((th) => th.dataset.build)))];
  const search = el("input", {type: "search", placeholder: "filter metrics", "aria-label": "filter metrics", input: narrow});
  const model = chooser("any model", models, narrow), build = chooser("any format", builds, narrow);
  const outcome = chooser("any outcome", Object.keys(evidence), narrow);
  tools.append(search, ...(models.length > 1 ? [model] : []), build, outcome,
    el("button", {type: "button", click: () => copy(heats.filter((one) => !one.closest(".scroll").hidden).map(csv).join("\n"), "matrix")}, "Copy as CSV"));
  tools.hidden = false;
  function narrow() {
    const wanted = search.value.toLowerCase();
    for (const table of heats) {
      table.closest(".scroll").hidden = Boolean(model.value) && table.dataset.model !== model.value;
      const kept = $$("thead th", table).map((th) => !th.dataset.build || !build.value || th.dataset.build === build.value);
      for (const row of [$("thead tr", table), ...rowsOf(table)]) for (const [at, cell] of [...row.cells].entries()) cell.hidden = !kept[at];
      for (const row of rowsOf(table)) {
        const cells = [...row.cells].filter((cell) => !cell.hidden);
        row.hidden = !(words(cells[0]).toLowerCase().includes(wanted) || cells[0].dataset.metric.includes(wanted)) ||
          Boolean(outcome.value) && !cells.slice(1).some((cell) => evidence[outcome.value].test(cell.className));
      }
      for (const body of table.tBodies) body.hidden = [...body.rows].every((row) => row.hidden || row.classList.contains("group"));
    }
  }
}
heatTools();
for (const table of heats) {
  $("tbody tr:not(.group) td", table)?.setAttribute("tabindex", "0");
  table.addEventListener("click", (event) => { const cell = event.target.closest("tr:not(.group) td"); if (cell) openCell(cell); });
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("tr:not(.group) td");
    if (!cell) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); openCell(cell); return; }
    const [down, right] = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]}[event.key] || [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const grid = cellsOf(table), y = grid.findIndex((row) => row.includes(cell)), x = grid[y].indexOf(cell);
    const row = grid[Math.min(Math.max(y + down, 0), grid.length - 1)];
    focusOn([cell, ...grid.flat()], 1 + grid.flat().indexOf(row[Math.min(Math.max(x + right, 0), row.length - 1)]));
  });
}
const drawer = $("#drawer");
const route = (...parts) => `#${parts.map(encodeURIComponent).join("/")}`;
const setHash = (hash) => { if (location.hash !== hash) history.replaceState(null, "", hash || " "); };
/** Rows of the page's tables that are of a build and name one of some things. */
function behind(model, build, names) {
  const found = [];
  for (const table of $$("table[data-source]")) {
    const heads = $$("thead th", table).map(first), at = (name) => heads.indexOf(name);
    const what = ["criterion", "metric", "rate"].map(at).find((column) => column >= 0);
    if (what === undefined || at("build") < 0) continue;
    const rows = rowsOf(table).filter((row) => {
      const name = words(row.cells[at("build")]), thing = words(row.cells[what]);
      return (name === `${model}/${build}` || (name === build && (at("base model") < 0 || words(row.cells[at("base model")]) === model))) &&
        names.some((one) => thing === one || thing.endsWith(`: ${one}`) || thing.startsWith(`${one}: `));
    });
    if (rows.length) found.push({table, heads, rows});
  }
  return found;
}
function openDrawer(title, facts, {model, build, names, artefacts, hash}, opener) {
  const sections = behind(model, build, names).map(({table, heads, rows}) => el("section", {},
    el("h3", {}, table.closest("details, section")?.querySelector("summary, h3, h2")?.firstChild.textContent || table.dataset.source),
    rows.map((row) => el("dl", {}, heads.flatMap((head, at) => {
      const text = words(row.cells[at]);
      return ["base model", "build"].includes(head) || !text ? [] : [el("div", {}, el("dt", {}, head), el("dd", {}, text))];
    })))));
  const changed = flips ? flips.count(model, build, names) : 0;
  fill(drawer,
    el("div", {class: "drawer-head"}, el("h2", {id: "drawer-title"}, title),
      el("button", {type: "button", class: "close", "aria-label": "Close", click: () => drawer.close()}, "×")),
    el("dl", {}, facts.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("p", {class: "actions"},
      changed ? el("button", {type: "button", click: () => { drawer.close(); flips.only(model, build, names); }}, `Show the ${changed} answers that changed`) : null,
      el("button", {type: "button", click: () => copy(location.href.split("#")[0] + hash, "link")}, "Copy link")),
    ...sections,
    artefacts.length ? el("section", {}, el("h3", {}, "Read from"), el("ul", {}, artefacts.map((one) => el("li", {}, el("code", {}, one))))) : "");
  if (opener && !opener.hasAttribute("tabindex")) opener.setAttribute("tabindex", "-1");
  if (!drawer.open) drawer.showModal();
  drawer.scrollTop = 0;
  setHash(hash);
  drawer.onclose = () => { setHash(""); opener?.focus({preventScroll: true}); };
}
drawer?.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });
function openCell(cell) {
  const {model, build, metric, label, about} = placeOf(cell);
  const facts = [["what it is", about], ["value", words($("b", cell) || cell)], ["interval", words($("small", cell) || el("i"))],
    ["answers", cell.dataset.n], ["difference from the baseline", words($("i", cell) || el("i"))]];
  const row = `base_model=${model};quant=${build}`;
  const artefacts = [`matrix.csv, row ${row}, column ${metric}`];
  if (behind(model, build, [label]).some(({table}) => table.dataset.source === "deltas")) artefacts.push(`deltas.csv, row ${row};metric=${metric}`);
  openDrawer(`${label}, ${build} of ${model}`, facts, {model, build, names: [label], artefacts, hash: route("cell", model, build, metric)}, cell);
}
for (const table of $$("table.forest-table")) {
  const rows = $$("tr[id]", table);
  for (const [at, row] of rows.entries()) row.setAttribute("tabindex", at ? "-1" : "0");
  const open = (row) => {
    const model = table.dataset.model, build = row.closest("tbody").dataset.build, name = words(textOnly(row.cells[0]));
    const facts = [["difference in pp", words(row.cells[2])], ["margins in pp", row.dataset.margins], ["pairs", words(row.cells[3])], ["outcome", words(row.cells[4])]];
    openDrawer(`${name}, ${build} of ${model}`, facts, {model, build, names: [name], artefacts: [], hash: `#${row.id}`}, row);
  };
  table.addEventListener("click", (event) => { const row = event.target.closest("tr[id]"); if (row && !event.target.closest("a")) open(row); });
  table.addEventListener("keydown", (event) => {
    const at = rows.indexOf(event.target), step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (at < 0 || !(step || event.key === "Enter")) return;
    event.preventDefault();
    if (step) focusOn(rows, Math.min(Math.max(at + step, 0), rows.length - 1)); else open(rows[at]);
  });
}

// The browser of answers that changed.
const flips = $("#flips-data") && $("#flips-app") ? flipBrowser(JSON.parse($("#flips-data").textContent), $("#flips-app")) : null;

function flipBrowser(data, app) {
  const PAGE = 200;
  const metricName = (at) => [data.metrics[at].name, data.metrics[at].by].filter(Boolean).join(" ");
  const prompts = data.prompts.map((one) => ({...one, builds: data.models[one.m].builds, model: data.models[one.m].name, task: data.tasks[one.t]}));
  for (const one of prompts) one.a = one.a.map((answer) => (answer && "same" in answer ? {x: one.a[answer.same].x, r: one.a[answer.same].r, cut: one.a[answer.same].cut, ...answer} : answer));
  const distinct = (values) => [...new Set(values)];
  const state = {shown: prompts, at: 0, rendered: PAGE, opened: false, hiddenBuilds: new Set()};
  const builds = distinct(prompts.flatMap((one) => one.c.map(([build]) => one.builds[build].name)));
  const metrics = distinct(prompts.flatMap((one) => one.c.map(([, metric]) => metric)));
  const pick = {
    model: chooser("any model", data.models.map((one) => one.name), narrow),
    task: chooser("any task", data.tasks.map((one) => one.name), narrow),
    metric: chooser("any metric", metrics.map(String), narrow, metrics.map(metricName)),
    build: chooser("any build", builds, narrow),
    direction: chooser("either direction", ["lost", "gained"], narrow, ["lost by the build", "gained by the build"]),
  };
  const check = (text) => { const box = el("input", {type: "checkbox", change: narrow}); return [box, el("label", {}, box, ` ${text}`)]; };
  const [alert, alertLabel] = check("format alert"), [apart, apartLabel] = check("instruments disagree"), [noisy, noisyLabel] = check("an A/A replicate changed too");
  const search = el("input", {type: "search", placeholder: "search prompts and answers", "aria-label": "search prompts and answers", input: narrow});
  const some = (test) => prompts.some((one) => one.a.some((answer) => answer && test(answer)));
  const replicated = prompts.some((one) => one.builds.some((build) => build.group === "replicate"));
  const count = el("span", {class: "soft", "aria-live": "polite"});
  const list = el("ol", {class: "flip-list"});
  const detail = el("div", {class: "flip", tabindex: "-1"});
  const previous = el("button", {type: "button", click: () => go(state.at - 1)}, "Previous"), next = el("button", {type: "button", click: () => go(state.at + 1)}, "Next");
  const reveal = el("button", {type: "button", "aria-pressed": "false", click: () => { state.opened = !state.opened; reveal.setAttribute("aria-pressed", state.opened); reveal.textContent = state.opened ? "Fold harmful answers" : "Show harmful answers"; show(); }}, "Show harmful answers");
  app.append(
    el("div", {class: "tools"}, search, ...(data.models.length > 1 ? [pick.model] : []), pick.task, pick.metric, ...(builds.length > 1 ? [pick.build] : []), pick.direction,
      ...(some((answer) => answer.f) ? [alertLabel] : []), ...(some((answer) => answer.d) ? [apartLabel] : []), ...(replicated ? [noisyLabel] : [])),
    el("div", {class: "tools"}, previous, next, count, ...(data.tasks.some((task) => task.harmful) ? [reveal] : []), el("span", {class: "soft"}, "keys: j next, k previous, / search")),
    el("div", {class: "flip-split"}, list, detail));
  app.hidden = false;
  const examples = $("#flips .examples");
  if (examples) examples.hidden = true;

  function matches(one, wanted) {
    const moves = one.c.filter(([build, metric, way]) => (!pick.build.value || one.builds[build].name === pick.build.value) &&
      (!pick.metric.value || String(metric) === pick.metric.value) && (!pick.direction.value || way === pick.direction.value));
    if (!moves.length || (pick.model.value && one.model !== pick.model.value) || (pick.task.value && one.task.name !== pick.task.value)) return false;
    const moved = distinct(moves.map(([build]) => build)).map((build) => one.a[build]).filter(Boolean);
    if (alert.checked && !moved.some((answer) => answer.f)) return false;
    if (apart.checked && ![...moved, one.a[0]].some((answer) => answer?.d)) return false;
    if (noisy.checked && !one.a.some((answer, at) => answer && one.builds[at].group === "replicate" && moves.some(([, metric]) => differs(answer.s[metric], one.a[0]?.s[metric])))) return false;
    return !wanted || [one.id, one.p, ...one.a.map((answer) => (answer ? `${answer.x} ${answer.r || ""}` : ""))].join("\n").toLowerCase().includes(wanted);
  }
  const differs = (value, before) => value !== null && before !== null && value !== undefined && before !== undefined && Math.abs(value - before) >= 0.5;
  function narrow() {
    const wanted = search.value.trim().toLowerCase();
    const current = state.shown[state.at];
    state.shown = prompts.filter((one) => matches(one, wanted));
    state.at = Math.max(0, state.shown.indexOf(current));
    state.rendered = Math.max(PAGE, state.at + 1);
    write();
    show();
  }
  function write() {
    const items = state.shown.slice(0, state.rendered).map((one, at) => el("li", {},
      el("button", {type: "button", "aria-current": at === state.at ? "true" : null, click: () => go(at)},
        el("b", {}, one.id), el("small", {}, data.models.length > 1 ? `${one.model}, ${one.task.name}` : one.task.name),
        distinct(one.c.map(([build]) => build)).map((build) => {
          const ways = distinct(one.c.filter(([other]) => other === build).map(([, , way]) => way));
          return el("span", {class: `way ${ways.length > 1 ? "both" : ways[0]}`}, `${one.builds[build].name} ${ways.join(", ")}`);
        }))));
    if (state.shown.length > state.rendered) items.push(el("li", {}, el("button", {type: "button", class: "more", click: () => { state.rendered += PAGE; write(); }}, `Show more of ${state.shown.length}`)));
    fill(list, ...items);
  }
  function go(at, focus = false) {
    if (at < 0 || at >= state.shown.length) return;
    $('[aria-current="true"]', list)?.removeAttribute("aria-current");
    state.at = at;
    if (at >= state.rendered) { state.rendered = at + PAGE; write(); }
    const item = list.children[at];
    $("button", item).setAttribute("aria-current", "true");
    list.scrollTop = item.offsetTop - list.clientHeight / 2;
    show();
    setHash(hashOf(state.shown[at]));
    if (focus) detail.focus();
  }
  const hashOf = (one) => route("flip", one.model, one.task.name, one.id);
  function show() {
    const one = state.shown[state.at];
    count.textContent = one ? `${state.at + 1} of ${state.shown.length} prompts` : `none of ${prompts.length} prompts`;
    previous.disabled = state.at <= 0;
    next.disabled = state.at >= state.shown.length - 1;
    if (!one) { fill(detail, el("p", {class: "missing"}, "No prompt is left by these filters.")); return; }
    const changed = new Set(one.c.map(([build]) => build));
    const visible = one.builds.map((build, at) => at).filter((at) => one.a[at] && !state.hiddenBuilds.has(one.builds[at].name));
    const toggles = one.builds.map((build) => {
      const box = el("input", {type: "checkbox", change: () => { state.hiddenBuilds[box.checked ? "delete" : "add"](build.name); show(); }});
      box.checked = !state.hiddenBuilds.has(build.name);
      return el("label", {}, box, ` ${build.name}`);
    });
    const lead = visible.find((at) => changed.has(at));
    fill(detail,
      el("h3", {}, one.id, el("a", {class: "link", href: hashOf(one), "aria-label": "Link to this prompt"}, "#")),
      el("p", {class: "soft"}, `${one.model}, ${one.task.name}: `, one.c.map(([build, metric, way], at) => `${at ? "; " : ""}${one.builds[build].name} ${way} ${metricName(metric)}`)),
      el("div", {class: "prompt"}, el("h4", {}, "Prompt"),
        one.task.start ? el("details", {}, el("summary", {}, "what every prompt of this task begins with"), quote(one.task.start)) : "",
        quote(one.p || "the bundle does not keep it"),
        one.task.end ? el("details", {}, el("summary", {}, "and what it ends with"), quote(one.task.end)) : ""),
      el("div", {class: "tools"}, toggles),
      el("div", {class: "answers-beside"}, visible.map((at) => answerOf(one, at, changed, lead))));
  }
  const quote = (...children) => el("blockquote", {dir: "auto"}, ...children);
  function answerOf(one, at, changed, lead) {
    const build = one.builds[at], answer = one.a[at], base = one.a[0];
    const against = at === 0 ? (lead === undefined ? null : one.a[lead]) : base;
    const decides = Object.keys(answer.s).filter((metric) => data.metrics[metric].decides);
    const others = Object.keys(answer.s).filter((metric) => !data.metrics[metric].decides);
    const score = (metric) => el("li", {class: at && differs(answer.s[metric], base?.s[metric]) ? "moved" : null}, metricName(metric), " ",
      el("b", {}, answer.s[metric] === null ? "ungraded" : String(answer.s[metric])));
    const refused = decides.some((metric) => /^refusal rate/.test(data.metrics[metric].name) && answer.s[metric] === 1);
    const text = answer.why && !answer.x ? el("p", {class: "missing"}, answer.why) : quote(...differing(answer.x, against?.x, at === 0 ? "del" : "ins"), answer.cut ? el("small", {class: "soft"}, ` cut; ${answer.cut} characters in all`) : "");
    const folded = one.task.harmful && !refused && answer.x;
    return el("article", {class: `answer ${build.group}${changed.has(at) ? " changed" : ""}`},
      el("h4", {}, build.name, el("small", {}, at === 0 ? "baseline" : build.note || (changed.has(at) ? "changed" : "same grade"))),
      folded ? el("details", {class: "harmful", open: state.opened}, el("summary", {}, "Show the answer"), text) : text,
      answer.r ? el("details", {}, el("summary", {}, "reasoning"), quote(answer.r)) : "",
      el("ul", {class: "scores", "aria-label": "decides"}, decides.map(score)),
      answer.f ? el("p", {class: "alerts"}, `format alert: ${answer.f.join(", ")}`) : "",
      answer.d ? el("p", {class: "alerts"}, "instruments disagree") : "",
      others.length || answer.l ? el("details", {}, el("summary", {}, "other scores and labels"), el("ul", {class: "scores"}, others.map(score), (answer.l || []).map(([judge, label]) => el("li", {}, `${judge}: `, el("b", {}, label))))) : "",
      el("p", {class: "soft file"}, build.file));
  }
  /** The words of a text, those that another one has not marked; whole where the two are too long to compare. */
  function differing(text, other, mark) {
    const mine = text.split(/(\s+)/), theirs = (other ?? text).split(/(\s+)/);
    if (other === undefined || text === other || mine.length * theirs.length > 1.5e6) return [text];
    const width = theirs.length + 1, best = new Uint16Array((mine.length + 1) * width);
    for (let i = mine.length - 1; i >= 0; i--) for (let j = theirs.length - 1; j >= 0; j--) {
      best[i * width + j] = mine[i] === theirs[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
    const parts = [];
    for (let i = 0, j = 0; i < mine.length; i++) {
      while (j < theirs.length && mine[i] !== theirs[j] && best[i * width + j + 1] >= best[(i + 1) * width + j]) j++;
      const same = j < theirs.length && mine[i] === theirs[j];
      j += same;
      if (same || !mine[i].trim()) parts.push(mine[i]);
      else parts.push(el(mark, {}, mine[i]));
    }
    return parts;
  }
  app.addEventListener("keydown", (event) => {
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = {j: 1, k: -1, n: 1, p: -1, ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (step) { event.preventDefault(); go(state.at + step); }
    if (event.key === "/") { event.preventDefault(); search.focus(); }
  });
  const named = (names) => metrics.filter((metric) => names.includes(metricName(metric)) || names.includes(data.metrics[metric].name));
  narrow();
  return {
    count(model, build, names) {
      const wanted = named(names);
      return prompts.filter((one) => one.model === model && one.c.some(([at, metric]) => one.builds[at].name === build && wanted.includes(metric))).length;
    },
    only(model, build, names) {
      for (const select of Object.values(pick)) select.value = "";
      pick.model.value = data.models.length > 1 ? model : "";
      pick.build.value = builds.length > 1 ? build : "";
      pick.metric.value = String(named(names)[0]);
      narrow();
      $("#flips").scrollIntoView();
      detail.focus({preventScroll: true});
    },
    open(model, task, id) {
      const find = () => state.shown.findIndex((one) => one.model === model && one.task.name === task && one.id === id);
      if (find() < 0) { for (const select of Object.values(pick)) select.value = ""; for (const box of [alert, apart, noisy]) box.checked = false; search.value = ""; narrow(); }
      if (find() < 0) return;
      $("#flips").scrollIntoView();
      go(find(), true);
    },
  };
}

// A fragment opens what it names again.
function follow() {
  const hash = location.hash.slice(1);
  if (!hash) return;
  let parts;
  try { parts = hash.split("/").map(decodeURIComponent); } catch { return; }
  if (parts[0] === "flip" && parts.length === 4) { flips?.open(...parts.slice(1)); return; }
  if (parts[0] === "cell" && parts.length === 4) {
    const table = heats.find((one) => one.dataset.model === parts[1]);
    const at = table ? $$("thead th", table).findIndex((th) => th.dataset.build === parts[2]) : -1;
    const row = table && rowsOf(table).find((one) => one.cells[0].dataset.metric === parts[3]);
    if (row && at > 0) { row.cells[at].scrollIntoView({block: "center"}); openCell(row.cells[at]); }
    return;
  }
  const target = document.getElementById(parts.join("/"));
  for (let folded = target?.closest("details"); folded; folded = folded.parentNode.closest("details")) folded.open = true;
  target?.scrollIntoView({block: target.tagName === "TR" ? "center" : "start"});
}
addEventListener("hashchange", follow);
document.documentElement.classList.add("scripted");
follow();
})();
