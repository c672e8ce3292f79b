"use strict";
// The page of llava-pose annotate. Angles are radians and pixels those of the upright photograph, as in docs/POSE.md;
// what a person reads is degrees.
const VIEWPORT = {{viewport}};
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const RADIANS = Math.PI / 180;
const STATUSES = ["status_good", "status_partially", "status_barely", "status_bad"];
const state = {
  pictures: [], models: {}, hasCheckpoint: false,
  index: 0, picture: null, width: 1, height: 1, ready: false,
  objects: [], at: 0, past: [],  // of this photograph; past: what undo goes back to
  drafts: new Map(),             // index -> objects that were changed and not saved
  wires: new Map(),              // "category/number" -> vertices and edges, or null while they come
};

// Geometry: that of llava_pose/pose/geometry.py

function rotation({ azimuth, elevation, theta }) {
  const sa = Math.sin(azimuth), ca = Math.cos(azimuth), se = Math.sin(elevation), ce = Math.cos(elevation);
  const st = Math.sin(theta), ct = Math.cos(theta);
  return [
    [ct * ca + st * se * sa, ct * sa - st * se * ca, -st * ce],
    [st * ca - ct * se * sa, st * sa + ct * se * ca, ct * ce],
    [ce * sa, -ce * ca, se],
  ];
}

// pixels and depth [u, v, depth] of points in the object frame; NaN for what is not in front of the camera
function project(points, pose) {
  const rows = rotation(pose);
  return points.map((point) => {
    const [x, y, z] = rows.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2]);
    const depth = pose.distance - z > 0 ? pose.distance - z : NaN;
    return [pose.px + (pose.viewport * x) / depth, pose.py - (pose.viewport * y) / depth, depth];
  });
}

const HALF = 0.5 / Math.sqrt(3);  // a cube whose diagonal is 1
const CUBOID = {
  vertices: [0, 1, 2, 3, 4, 5, 6, 7].map((n) => [n & 1 ? HALF : -HALF, n & 2 ? HALF : -HALF, n & 4 ? HALF : -HALF]),
  edges: [[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [4, 6], [5, 7], [0, 4], [1, 5], [2, 6], [3, 7]],
};
const FRONT_FACE = [0, 1, 5, 4];  // y < 0
const AXES = [["#e53935", [0.35, 0, 0], "left"], ["#2176ff", [0, 0, 0.35], "up"], ["#00c853", [0, -0.35, 0], "front"]];

// Drawing

const view = { scale: 1, left: 0, top: 0 };
const toScreen = ([u, v]) => [view.left + u * view.scale, view.top + v * view.scale];
const toPicture = (x, y) => [(x - view.left) / view.scale, (y - view.top) / view.scale];

function line(points, close = false) {
  pen.beginPath();
  points.map(toScreen).forEach(([x, y], n) => (n ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  if (close) pen.closePath();
}

function draw() {
  const ratio = window.devicePixelRatio || 1, { clientWidth: w, clientHeight: h } = canvas;
  canvas.width = Math.round(w * ratio);
  canvas.height = Math.round(h * ratio);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  view.scale = 0.96 * Math.min(w / state.width, h / state.height);
  view.left = (w - state.width * view.scale) / 2;
  view.top = (h - state.height * view.scale) / 2;
  if (state.picture) pen.drawImage(state.picture, view.left, view.top, state.width * view.scale, state.height * view.scale);
  state.objects.forEach((one, number) => {
    const [x1, y1, x2, y2] = one.bbox, chosen = number === state.at;
    pen.lineWidth = chosen ? 2 : 1;
    pen.strokeStyle = chosen ? "#ffd54f" : "#ffffff99";
    line([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], true);
    pen.stroke();
    if (chosen) drawShape(one);
  });
}

function drawShape(one) {
  const shape = shapeOf(one), isCuboid = shape === CUBOID;
  const places = project(shape.vertices, one);
  if (isCuboid) {
    pen.fillStyle = "#00c85344";
    line(FRONT_FACE.map((n) => places[n]), true);
    pen.fill();
  }
  pen.lineWidth = isCuboid ? 2 : 1.2;
  for (const [strong, colour] of [[false, "#ff70e055"], [true, "#ff70e0"]]) {  // what lies behind the middle is faint
    pen.strokeStyle = colour;
    pen.beginPath();
    for (const [from, to] of shape.edges) {
      const a = places[from], b = places[to];
      if (isNaN(a[2] + b[2]) || (a[2] + b[2]) / 2 <= one.distance !== strong) continue;
      const [ax, ay] = toScreen(a), [bx, by] = toScreen(b);
      pen.moveTo(ax, ay);
      pen.lineTo(bx, by);
    }
    pen.stroke();
  }
  const towards = rotation(one)[2];
  const order = [...AXES].sort((a, b) => dot(towards, a[1]) - dot(towards, b[1]));  // the nearest is drawn last
  for (const [colour, tip, name] of order) {
    const ends = project([[0, 0, 0], tip], one);
    if (isNaN(ends[1][2])) continue;
    for (const [width, style] of [[6, "#000a"], [3.5, colour]]) {
      pen.lineWidth = width;
      pen.strokeStyle = style;
      line(ends);
      pen.stroke();
    }
    const [x, y] = toScreen(ends[1]);
    pen.font = "600 12px system-ui, sans-serif";
    pen.lineWidth = 3;
    pen.strokeStyle = "#000c";
    pen.strokeText(name, x + 5, y - 3);
    pen.fillStyle = "#fff";
    pen.fillText(name, x + 5, y - 3);
  }
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

// the wires of an object's model, fetched once; the cuboid until they are there, and where there is none
function shapeOf(one) {
  if (!(state.models[one.category] ?? []).includes(one.cad_index)) return CUBOID;
  const key = `${one.category}/${one.cad_index}`;
  if (!state.wires.has(key)) {
    state.wires.set(key, null);
    api(`models/${encodeURIComponent(one.category)}/${one.cad_index}`).then(
      (wires) => { state.wires.set(key, wires); draw(); }, (error) => say(error.message, true));
  }
  return state.wires.get(key) ?? CUBOID;
}

// Talking to the server and to the person

async function api(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch {
    throw new Error("The server does not answer; start it again, what is not saved stays here until the page is closed.");
  }
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

// Labels

const current = () => state.objects[state.at];
const copy = () => JSON.stringify({ objects: state.objects, at: state.at });

function remember() {
  state.past.push(copy());
  if (state.past.length > 500) state.past.shift();
  state.drafts.set(state.index, state.objects);
}

// change the chosen object, so that undo brings back what was; a drag or a turn of the wheel is one change
let gesture = null, gestureEnds = 0;
function change(edit, name = null) {
  if (!state.ready || !current()) return;
  if (name === null || gesture !== name) remember();
  gesture = name;
  edit(current());
  show();
}

function undo() {
  if (!state.ready || !state.past.length) return say("There is nothing to undo.");
  ({ objects: state.objects, at: state.at } = JSON.parse(state.past.pop()));
  state.drafts.set(state.index, state.objects);
  gesture = null;
  show();
  say("Undone.");
}

function placeInBox(one) {  // one unit across, in the middle of its box
  const [x1, y1, x2, y2] = one.bbox;
  one.px = (x1 + x2) / 2;
  one.py = (y1 + y2) / 2;
  one.distance = one.viewport / Math.max(x2 - x1, y2 - y1, 1);
}

function newObject() {
  const { width: w, height: h } = state, category = current()?.category ?? "";
  const one = {
    category, bbox: [0.2 * w, 0.2 * h, 0.8 * w, 0.8 * h], azimuth: 30 * RADIANS, elevation: 15 * RADIANS, theta: 0,
    viewport: VIEWPORT, cad_index: state.models[category]?.[0] ?? 0, object_status: STATUSES[0], dense: "dense_no",
  };
  placeInBox(one);
  return one;
}

function addObject() {
  if (!state.ready) return;
  remember();
  state.objects.push(newObject());
  state.at = state.objects.length - 1;
  show();
}

function removeObject() {
  if (!state.ready || !current()) return;
  remember();
  state.objects.splice(state.at, 1);
  state.at = Math.max(0, state.at - 1);
  show();
}

function nextObject() {
  if (state.objects.length) state.at = (state.at + 1) % state.objects.length;
  show();
}

function setCategory(name) {
  change((one) => {
    one.category = name.trim();
    if (!(state.models[one.category] ?? []).includes(one.cad_index)) one.cad_index = state.models[one.category]?.[0] ?? 0;
  });
}

function nextShape() {
  change((one) => {
    const choices = [0, ...(state.models[one.category] ?? [])];
    one.cad_index = choices[(choices.indexOf(one.cad_index) + 1) % choices.length];
  });
}

function setStatus(number) { change((one) => { one.object_status = STATUSES[number]; }); }
function toggleDense() { change((one) => { one.dense = one.dense === "dense_yes" ? "dense_no" : "dense_yes"; }); }
function turn(right, down, name) { change((one) => { one.azimuth -= right; one.elevation += down; }, name); }
function roll(angle, name) { change((one) => { one.theta += angle; }, name); }
function move(right, down, name) { change((one) => { one.px += right; one.py += down; }, name); }
function zoom(times, name) { change((one) => { one.distance /= times; }, name); }

async function ask() {
  if (!state.ready || !state.hasCheckpoint) return;
  const { index } = state, one = current();
  say("The checkpoint is asked …");
  try {
    const asked = one ? { category: one.category || null, bbox: one.bbox } : {};
    const { confidence, ...answer } = await api(`predict/${index}`, asked);
    if (state.index !== index) return;
    remember();
    if (!one) state.at = state.objects.push(newObject()) - 1;
    Object.assign(current(), answer);
    if (!(state.models[answer.category] ?? []).includes(current().cad_index)) current().cad_index = state.models[answer.category]?.[0] ?? 0;
    show();
    say(`The checkpoint's answer${confidence === null ? "" : `, ${Math.round(100 * confidence)}% sure`}. Another category or box? Change it, and ask again (G).`);
  } catch (error) {
    if (state.index === index) say(error.message, true);
  }
}

// Photographs

async function open(index) {
  const { pictures } = state;
  index = Math.min(Math.max(index, 0), pictures.length - 1);
  Object.assign(state, { index, ready: false, picture: null, objects: [], at: 0, past: [] });
  gesture = null;
  say("");
  show();
  try {
    const picture = new Image();
    picture.src = `api/pictures/${index}`;
    const [labels] = await Promise.all([api(`labels/${index}`), picture.decode().catch(async () => {
      throw new Error((await (await fetch(picture.src)).json()).error);
    })]);
    if (state.index !== index) return;
    Object.assign(state, { picture, width: picture.naturalWidth, height: picture.naturalHeight, ready: true });
    state.objects = state.drafts.get(index) ?? labels.objects;
  } catch (error) {
    if (state.index === index) say(`${error.message} (N goes on)`, true);
    return;
  }
  show();
  if (!state.objects.length && pictures[index].count === null && !state.drafts.has(index)) {
    if (state.hasCheckpoint) await ask();
    if (state.index === index && !state.objects.length) state.objects = [newObject()];
    show();
  }
  canvas.focus();
}

let saving = false;
async function save() {
  if (!state.ready || saving) return;
  const nameless = state.objects.findIndex((one) => !one.category);
  if (nameless >= 0) {
    state.at = nameless;
    show();
    $("category").focus();
    return say("Choose the category of this object, or remove it (Del).", true);
  }
  const { index, objects, pictures } = state;
  saving = true;
  try {
    const { count } = await api(`labels/${index}`, { objects });
    pictures[index].count = count;
    state.drafts.delete(index);
  } catch (error) {
    return say(error.message, true);
  } finally {
    saving = false;
  }
  const following = [...pictures.keys()].map((n) => (index + 1 + n) % pictures.length).find((n) => pictures[n].count === null);
  if (following === undefined) {
    show();
    return say("Saved. All photographs are labelled; Ctrl-C in the terminal ends the server and says what comes next.");
  }
  await open(following);
}

// What the controls show, and what they change

const ANGLES = ["azimuth", "elevation", "theta"], LENGTHS = ["distance", "px", "py"], CORNERS = ["x1", "y1", "x2", "y2"];
const rounded = (number, digits) => String(+number.toFixed(digits));

function show() {
  const { pictures, index, objects } = state, one = current();
  const done = pictures.filter((picture) => picture.count !== null).length;
  $("bar").max = pictures.length || 1;
  $("bar").value = done;
  $("progress").textContent = `${done} of ${pictures.length} labelled`;
  $("name").textContent = pictures.length ? `${index + 1}. ${pictures[index].name}${state.drafts.has(index) ? " (not saved)" : pictures[index].count === 0 ? " (left out)" : ""}` : "";
  $("object").replaceChildren(...objects.map((each, n) => new Option(`${n + 1}: ${each.category || "no category"}`, n, false, n === state.at)));
  const models = state.models[one?.category] ?? [];
  $("shape").replaceChildren(...[0, ...models].map((n) => new Option(n ? `CAD model ${n}` : "cuboid", n, false, n === one?.cad_index)));
  for (const id of ["category", "shape", "object", "status", "dense", ...ANGLES, ...LENGTHS, ...CORNERS, "remove"]) $(id).disabled = !one;
  $("category").value = one?.category ?? "";
  for (const name of ANGLES) $(name).value = one ? rounded(degrees(name, one[name]), 2) : "";
  for (const name of LENGTHS) $(name).value = one ? rounded(one[name], 3) : "";
  CORNERS.forEach((name, n) => { $(name).value = one ? rounded(one.bbox[n], 1) : ""; });
  $("status").value = one?.object_status ?? STATUSES[0];
  $("dense").checked = one?.dense === "dense_yes";
  $("undo").disabled = !state.past.length;
  $("ask").hidden = !state.hasCheckpoint;
  draw();
}

function degrees(name, angle) {
  const turned = angle / RADIANS, low = name === "azimuth" ? 0 : -180;
  return turned - 360 * Math.floor((turned - low) / 360);
}

const number = (id, set) => $(id).addEventListener("change", () => {
  const value = parseFloat($(id).value);
  if (isFinite(value)) change((one) => set(one, value));
  else show();
});
for (const name of ANGLES) number(name, (one, value) => { one[name] = value * RADIANS; });
for (const name of LENGTHS) number(name, (one, value) => { if (name !== "distance" || value > 0) one[name] = value; });
CORNERS.forEach((name, n) => number(name, (one, value) => { one.bbox[n] = value; }));
$("category").addEventListener("change", () => setCategory($("category").value));
$("shape").addEventListener("change", () => { const chosen = +$("shape").value; change((one) => { one.cad_index = chosen; }); });
$("object").addEventListener("change", () => { state.at = +$("object").value; show(); });
$("status").addEventListener("change", () => setStatus($("status").selectedIndex));
$("dense").addEventListener("change", toggleDense);
const BUTTONS = { save, undo, ask, add: addObject, remove: removeObject, previous: () => open(state.index - 1), next: () => open(state.index + 1) };
for (const [id, act] of Object.entries(BUTTONS)) $(id).addEventListener("click", act);

// Keys

const FINE = RADIANS, COARSE = 10 * RADIANS;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "[": () => roll(FINE), "]": () => roll(-FINE), "{": () => roll(COARSE), "}": () => roll(-COARSE),
  "+": () => zoom(1.02), "=": () => zoom(1.02), "-": () => zoom(1 / 1.02), "_": () => zoom(1 / 1.02),
  t: () => $("tool-turn").click(), m: () => $("tool-move").click(), b: () => $("tool-box").click(),
  k: () => { $("category").focus(); $("category").select(); }, c: nextShape, d: toggleDense, a: addObject, Delete: removeObject, o: nextObject,
  g: ask, u: undo, p: BUTTONS.previous, n: BUTTONS.next, Enter: save, "?": () => { $("help").open = !$("help").open; },
  ...Object.fromEntries(STATUSES.map((_, n) => [String(n + 1), () => setStatus(n)])),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return canvas.focus();
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !event.target.matches("input")) {
    event.preventDefault();
    return undo();
  }
  // fields, lists and buttons have keys of their own
  if (event.ctrlKey || event.metaKey || event.target.closest("input, select, button, summary")) return;
  const arrow = ARROWS[event.key];
  if (arrow) {
    const [right, down] = arrow, step = event.shiftKey ? 10 : 1;
    event.altKey ? move(step * right, step * down) : turn(step * FINE * right, step * FINE * down);
  } else {
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || event.altKey) return;
    act();
  }
  event.preventDefault();
});

// The mouse, and a finger

const PER_PIXEL = 0.4 * RADIANS;
let drag = null;
const tool = () => document.querySelector("input[name=tool]:checked").value;

canvas.addEventListener("pointerdown", (event) => {
  if (event.button || !state.ready) return;
  canvas.setPointerCapture(event.pointerId);
  gesture = null;
  drag = { x: event.offsetX, y: event.offsetY, from: toPicture(event.offsetX, event.offsetY) };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y, which = tool();
  Object.assign(drag, { x: event.offsetX, y: event.offsetY });
  if (which === "move") move(dx / view.scale, dy / view.scale, "drag");
  else if (which === "box") drawBox(drag.from, toPicture(event.offsetX, event.offsetY));
  else if (event.shiftKey) roll(-dx * PER_PIXEL, "drag");
  else turn(dx * PER_PIXEL, dy * PER_PIXEL, "drag");
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { drag = null; gesture = null; });

function drawBox([x1, y1], [x2, y2]) {
  const inside = (value, most) => Math.min(Math.max(value, 0), most);
  const across = [inside(x1, state.width), inside(x2, state.width)].sort((a, b) => a - b);
  const down = [inside(y1, state.height), inside(y2, state.height)].sort((a, b) => a - b);
  if (across[1] - across[0] < 2 || down[1] - down[0] < 2) return;
  change((one) => { one.bbox = [across[0], down[0], across[1], down[1]]; placeInBox(one); }, "drag");
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const steps = Math.sign(event.deltaY || event.deltaX);
  event.shiftKey ? roll(-steps * FINE, "wheel") : zoom(1.03 ** -steps, "wheel");
  clearTimeout(gestureEnds);
  gestureEnds = setTimeout(() => { if (gesture === "wheel") gesture = null; }, 400);
}, { passive: false });

addEventListener("resize", draw);
addEventListener("beforeunload", (event) => { if (state.drafts.size) event.preventDefault(); });

// The start: the first photograph that nobody has looked at

(async () => {
  try {
    const { pictures, categories, models, has_checkpoint } = await api("state");
    Object.assign(state, { pictures, models, hasCheckpoint: has_checkpoint });
    $("categories").replaceChildren(...categories.map((name) => new Option(name, name)));
    const first = pictures.findIndex((picture) => picture.count === null);
    await open(first < 0 ? 0 : first);
    if (first < 0) say("All photographs are labelled.");
  } catch (error) {
    say(error.message, true);
  }
})();
