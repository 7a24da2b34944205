// A WebXR device that a test moves: window.device holds it. Put into the page before its own scripts run.
(() => {
  class Session extends EventTarget {
    constructor(mode) {
      super();
      Object.assign(this, { mode, visibilityState: "visible", renderState: {}, ended: false });
    }
    get inputSources() { return device.kind === "headset" ? device.controllers : []; }
    updateRenderState(state) { Object.assign(this.renderState, state); }
    async requestReferenceSpace(name) {
      if (name === "local-floor" && !device.floor) throw new DOMException("no floor", "NotSupportedError");
      return (device.space = new EventTarget());
    }
    requestAnimationFrame(callback) {
      setTimeout(() => !this.ended && callback(performance.now(), {
        getViewerPose: () => device.head && { ...pose(device.head), views: [view, view] },
        getPose: (space) => space.at && pose(space.at),
      }), 16);
    }
    async end() {
      if (this.ended) return;
      this.ended = true;
      device.session = null;
      this.dispatchEvent(new Event("end"));
    }
  }
  const identity = new Float32Array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
  const view = { projectionMatrix: identity, transform: { inverse: { matrix: identity } } };
  const pose = (at) => ({
    emulatedPosition: Boolean(at.guessed),
    transform: { position: { x: at.p[0], y: at.p[1], z: at.p[2] }, orientation: { w: at.q[0], x: at.q[1], y: at.q[2], z: at.q[3] } },
  });
  const button = () => ({ pressed: false, touched: false, value: 0 });
  const controller = (handedness) => ({
    handedness, targetRayMode: "tracked-pointer", gripSpace: { at: { p: [0, 1, -0.3], q: [1, 0, 0, 0] } },
    gamepad: { mapping: "xr-standard", buttons: [0, 1, 2, 3, 4, 5].map(button), axes: [0, 0, 0, 0] },
  });
  const device = (window.device = {
    kind: "headset", floor: true, session: null, space: null, draws: 0,
    head: { p: [0, 1.6, 0], q: [1, 0, 0, 0] }, controllers: [controller("left"), controller("right")],
    press(hand, index, value) {
      const pressed = this.controllers[hand].gamepad.buttons[index];
      pressed.value = value;
      pressed.pressed = value > 0.5;
    },
    move(hand, p, q = [1, 0, 0, 0]) { this.controllers[hand].gripSpace.at = { p, q }; },
    lose(hand) { this.controllers[hand].gripSpace.at = null; },
  });
  Object.defineProperty(navigator, "xr", { value: {
    isSessionSupported: async (mode) => (device.kind === "headset" ? mode === "immersive-vr" : mode === "immersive-ar"),
    requestSession: async (mode) => (device.session = new Session(mode)),
  } });
  window.XRWebGLLayer = class { getViewport() { return { x: 0, y: 0, width: 64, height: 64 }; } };
  WebGLRenderingContext.prototype.makeXRCompatible = async () => {};
  const draw = WebGLRenderingContext.prototype.drawArrays;
  WebGLRenderingContext.prototype.drawArrays = function (...given) {
    device.draws++;
    device.trouble = this.getError();
    return draw.apply(this, given);
  };
})();
