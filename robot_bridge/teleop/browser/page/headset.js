// WebXR: the controllers of a headset, or a phone that knows where it is. Squeeze is the clutch, the trigger the gripper.

import { takeHold } from "./hold.js";
import { fromXr, rotationFromXr } from "./math.js";
import { Panels } from "./panels.js";

const TRIGGER = 0, SQUEEZE = 1, STICK = 3, LOWER = 4, UPPER = 5;
const WORDS = { right: { [LOWER]: "success", [UPPER]: "failure" }, left: { [LOWER]: "discard", [UPPER]: "pause" } };
const TOUCHED = 0.05; // of the trigger's way

/** What can be entered here: "headset", "phone" or nothing. */
export async function enterable() {
  const supports = async (mode) => (await navigator.xr?.isSessionSupported?.(mode).catch(() => false)) ?? false;
  if (await supports("immersive-vr")) return "headset";
  return (await supports("immersive-ar")) ? "phone" : "";
}

export class Headset {
  /** `onFrame`: called with the time in every frame, since the window's own frames may stop meanwhile. */
  constructor({ gripper, settings, phone, word, stop, onFrame, onEnd, cameras, status }) {
    Object.assign(this, { gripper, settings, phone, word, stop, onFrame, onEnd, cameras, status });
    this.name = "headset";
    this.session = null;
    this.controllers = new Map();
  }

  /** Enter; must be called from a click. */
  async enter(kind, overlay) {
    const seeThrough = kind === "phone" || (await navigator.xr.isSessionSupported("immersive-ar").catch(() => false));
    const options = { optionalFeatures: ["local-floor", "dom-overlay"], ...(kind === "phone" ? { domOverlay: { root: overlay } } : {}) };
    const session = await navigator.xr.requestSession(seeThrough ? "immersive-ar" : "immersive-vr", options);
    try {
      await this.begin(session, kind);
    } catch (error) {
      await session.end(); // nobody is left in a session that shows nothing
      throw error;
    }
  }

  async begin(session, kind) {
    const gl = document.createElement("canvas").getContext("webgl", { xrCompatible: true, alpha: true });
    await gl.makeXRCompatible();
    session.updateRenderState({ baseLayer: new XRWebGLLayer(session, gl) });
    let floor = true;
    this.space = await session.requestReferenceSpace("local-floor").catch(() => {
      floor = false;
      return session.requestReferenceSpace("local");
    });
    this.space.addEventListener("reset", () => this.release()); // the origin was moved: no pose goes on from before
    this.panels = kind === "phone" ? null : new Panels(gl, floor ? 1.35 : -0.1);
    this.gl = gl;
    this.kind = kind;
    this.session = session;
    this.phone.moves = kind === "phone";
    session.addEventListener("end", () => this.ended());
    session.addEventListener("visibilitychange", () => session.visibilityState !== "visible" && this.release());
    session.requestAnimationFrame((time, frame) => this.frame(time, frame));
  }

  leave() {
    this.session?.end();
  }

  ended() {
    this.release();
    this.session = null;
    this.phone.moves = false;
    this.phone.heardPose(null);
    this.onEnd();
  }

  frame(time, frame) {
    if (!this.session) return;
    this.session.requestAnimationFrame((next, nextFrame) => this.frame(next, nextFrame));
    const viewer = frame.getViewerPose(this.space);
    if (this.kind === "phone") this.phone.heardPose(viewer && !viewer.emulatedPosition ? viewer.transform : null);
    else for (const source of this.session.inputSources) this.track(source, frame);
    for (const source of this.controllers.keys()) if (![...this.session.inputSources].includes(source)) this.controllers.delete(source);
    this.draw(viewer);
    this.onFrame(performance.now());
  }

  track(source, frame) {
    if (!source.gripSpace || !source.gamepad) return;
    const controller = this.controllers.get(source) ?? { grip: 0, down: new Set(), pulled: 0 };
    this.controllers.set(source, controller);
    const pose = frame.getPose(source.gripSpace, this.space);
    controller.pose = pose && !pose.emulatedPosition ? pose.transform : null;
    const { buttons } = source.gamepad;
    const down = new Set(buttons.flatMap((button, i) => (button.pressed ? [i] : [])));
    const fresh = [...down].filter((i) => !controller.down.has(i));
    controller.down = down;
    if (fresh.includes(STICK)) this.stop();
    for (const i of fresh) if (WORDS[source.handedness]?.[i]) this.word(WORDS[source.handedness][i]);
    if (!down.has(SQUEEZE) || !controller.pose) controller.grip = 0;
    else if (fresh.includes(SQUEEZE)) {
      controller.grip = takeHold();
      controller.scale = 2 * this.settings.speed; // one hold, one scale
      controller.pulled = 0; // what was let go of as the hold began moves nothing
    }
    const pulled = buttons[TRIGGER]?.value ?? 0;
    const arm = this.arm(source);
    if (controller.grip && (pulled > TOUCHED || controller.pulled > TOUCHED)) this.gripper.set(arm, 1 - pulled);
    controller.pulled = pulled;
  }

  arm(source) {
    return this.settings.arms > 1 ? (source.handedness === "right" ? 1 : 0) : 0;
  }

  release() {
    for (const controller of this.controllers.values()) controller.grip = 0;
  }

  hands() {
    const hands = new Map();
    for (const [source, { grip, pose, scale }] of this.controllers) {
      const arm = this.arm(source);
      if (!grip || !pose || (hands.has(arm) && hands.get(arm).grip < grip)) continue; // of two for one arm, who held first
      const position = fromXr(pose.position).map((v) => v * scale);
      hands.set(arm, { arm, grip, pose: [...position, ...rotationFromXr(pose.orientation)] });
    }
    return [...hands.values()];
  }

  draw(viewer) {
    const layer = this.session.renderState.baseLayer;
    this.gl.bindFramebuffer(this.gl.FRAMEBUFFER, layer.framebuffer);
    this.gl.clearColor(0, 0, 0, 0);
    this.gl.clear(this.gl.COLOR_BUFFER_BIT | this.gl.DEPTH_BUFFER_BIT);
    if (!viewer || !this.panels) return;
    const shown = [...this.cameras.shown].map(([name, { canvas, number }]) => ({ name, canvas, number }));
    this.panels.prepare(shown, this.status());
    for (const view of viewer.views) {
      const { x, y, width, height } = layer.getViewport(view);
      this.gl.viewport(x, y, width, height);
      this.panels.draw(view.projectionMatrix, view.transform.inverse.matrix);
    }
  }
}
