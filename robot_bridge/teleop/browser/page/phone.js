// A phone in the hand: how it is turned, from its sensors, or where it is besides, from WebXR, while a finger holds the pad.

import { fromXr, rotationFromXr, rotationOfPhone } from "./math.js";

const FRESH_MS = 200;

export class Phone {
  constructor() {
    this.turns = false;
    this.moves = false; // set while WebXR tells where the phone is
    this.north = 0;
    this.angles = null;
    this.told = null;
    addEventListener("deviceorientation", (event) => this.heardAngles(event));
  }

  /** Whether there are sensors that may be asked. */
  static get possible() {
    return "DeviceOrientationEvent" in window && navigator.maxTouchPoints > 0;
  }

  /** Begin to turn the tool with the phone; some browsers ask their user. Gives what is wrong, or nothing. */
  async begin() {
    if (typeof DeviceOrientationEvent.requestPermission === "function") {
      if ((await DeviceOrientationEvent.requestPermission()) !== "granted") return "the browser does not let the page feel how the phone is turned";
    }
    this.turns = true;
    return "";
  }

  end() {
    this.turns = false;
  }

  heardAngles({ alpha, beta, gamma }) {
    if (alpha === null || beta === null || gamma === null) return;
    this.angles = { alpha, beta, gamma, at: performance.now() };
  }

  /** What WebXR says in a frame; null where it has lost track. */
  heardPose(transform) {
    this.told = transform && { position: fromXr(transform.position), rotation: rotationFromXr(transform.orientation), at: performance.now() };
  }

  takeHold() {
    this.north = ((this.angles?.alpha ?? 0) * Math.PI) / 180;
  }

  /** [position, rotation]; null where the phone is not asked, undefined where it should tell and does not. */
  pose() {
    const fresh = (heard) => heard && performance.now() - heard.at < FRESH_MS;
    if (this.moves) return fresh(this.told) ? [this.told.position, this.told.rotation] : undefined;
    if (!this.turns) return null;
    // sensors may be silent while nothing turns, so what they said last goes on to count
    return this.angles ? [[0, 0, 0], rotationOfPhone(this.angles.alpha, this.angles.beta, this.angles.gamma, this.north)] : undefined;
  }
}
