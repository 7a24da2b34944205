// The page: devices give hands, the link says them, and what comes back is shown.

import { Cameras } from "./cameras.js";
import { Gamepads } from "./gamepad.js";
import { Headset, enterable } from "./headset.js";
import { Gripper } from "./hold.js";
import { Keyboard } from "./keyboard.js";
import { Link } from "./link.js";
import { turnRotation, turnVector } from "./math.js";
import { Phone } from "./phone.js";
import { Pointer } from "./pointer.js";
import { Settings } from "./settings.js";
import { View } from "./view.js";

const IDLE_MS = 100;
const $ = (id) => document.getElementById(id);

const view = new View();
const settings = new Settings(() => release());
const gripper = new Gripper();
const phone = new Phone();
const cameras = new Cameras($("cameras"));
const word = (name) => link.word(name) && view.pressed(name);
const stop = () => view.stopping(link.word("e_stop"));
const shared = { gripper, settings, phone, word, stop };

const link = new Link({
  welcome: (about) => {
    settings.begin(about);
    view.welcome(about);
    keepAwake();
  },
  heard: (message) => {
    if (message.lapsed) release();
    view.heard(message, link.roundTripMs);
  },
  refused: (why) => end(() => view.refused(why)),
  lost: () => end(() => view.lost()),
  picture: (name, blob) => cameras.show(name, blob),
});
const pointer = new Pointer({ pad: $("pad"), height: $("height"), turn: $("turn") }, shared);
const keyboard = new Keyboard(shared);
const gamepads = new Gamepads(shared);
const headset = new Headset({ ...shared, cameras, status: () => view.status, onFrame: (now) => step(now), onEnd: () => view.left() });
const devices = [headset, gamepads, keyboard, pointer];

let active = null, lastStep = performance.now(), lastSaid = 0, wasHeld = false;

/** Let go of everything: what is still pressed counts only when it is pressed anew. */
function release() {
  for (const device of devices) device.release();
  gripper.release();
}

function end(show) {
  release();
  headset.leave();
  show();
}

/** One moment: whoever holds goes on to hold, else the first device that takes hold. */
function step(now) {
  if (now - lastStep > link.deadManMs) {
    if (wasHeld) view.stuttered();
    release(); // the page stood still: nobody knows what was meant meanwhile
  }
  lastStep = now;
  const pad = gamepads.poll();
  if (!active?.hands().length) active = devices.find((device) => device.hands().length) ?? null;
  const hands = [...(active?.hands() ?? [])];
  for (const pulse of gripper.hands()) if (!hands.some((hand) => hand.arm === pulse.arm)) hands.push(pulse);
  const held = hands.length > 0;
  view.show({ held, device: active?.name ?? (held ? "gripper" : ""), pad: pad?.id ?? "" });
  if (!held && !wasHeld && now - lastSaid < IDLE_MS) return;
  wasHeld = held;
  lastSaid = now;
  const name = active === pointer && (phone.turns || phone.moves) ? "phone" : (active?.name ?? "pointer");
  link.say(name, hands.map((hand) => ({ ...alongRobot(hand), open: gripper.open(hand.arm) })));
}

/** From the axes of somebody who looks where they look to the robot's. */
function alongRobot(hand) {
  const yaw = settings.yaw;
  if (hand.rate) {
    const { rate } = hand;
    return { ...hand, rate: [...turnVector(rate.slice(0, 3), yaw), ...turnVector(rate.slice(3), yaw)].map((v) => Math.max(-1, Math.min(1, v))) };
  }
  return { ...hand, pose: [...turnVector(hand.pose.slice(0, 3), yaw), ...turnRotation(hand.pose.slice(3), yaw)] };
}

function frame(now) {
  requestAnimationFrame(frame);
  if (!headset.session || headset.kind === "phone") step(now);
}

/** Act when a button goes down, not when it comes up; from the keyboard when it is clicked. */
function atOnce(button, act) {
  button.onpointerdown = act;
  button.onclick = (event) => event.detail === 0 && act();
}

async function keepAwake() {
  try {
    await navigator.wakeLock?.request("screen");
  } catch {
    // the battery is low, or the page is hidden: the screen may go dark, and the robot holds then
  }
}

async function offerImmersive() {
  const kind = await enterable();
  const button = $("enter");
  button.hidden = !kind;
  button.textContent = kind === "phone" ? "Move with the phone" : "Enter the headset";
  button.onclick = async () => {
    if (headset.session) return headset.leave();
    try {
      await headset.enter(kind, document.body);
      view.entered(kind);
    } catch (error) {
      view.note(`it cannot be entered: ${error.message}`);
    }
  };
}

function offerTurning() {
  const button = $("turning");
  button.hidden = !Phone.possible;
  button.onclick = async () => {
    const problem = phone.turns ? phone.end() : await phone.begin();
    if (problem) view.note(problem);
    button.setAttribute("aria-pressed", String(phone.turns));
  };
}

for (const button of document.querySelectorAll("[data-word]")) button.onclick = () => word(button.dataset.word);
for (const button of document.querySelectorAll("[data-open]")) atOnce(button, () => gripper.set(settings.arm, Number(button.dataset.open), true));
atOnce($("stop"), stop);
addEventListener("blur", release);
addEventListener("pagehide", release);
addEventListener("hashchange", () => location.hash && location.reload()); // a new link, opened where the page is open already
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return keepAwake();
  release();
  link.say("pointer", []);
});
setInterval(() => document.hidden && link.say("pointer", []), 1000); // the page is there, and nobody holds
offerImmersive();
offerTurning();
link.connect();
requestAnimationFrame(frame);
