// What the person sees of how things stand.

const $ = (id) => document.getElementById(id);
const NAMES = { pointer: "pointer", keyboard: "keys", gamepad: "gamepad", headset: "headset", gripper: "gripper" };
const COLORS = { idle: "#7b8b99", moving: "#2bb3a3", warn: "#e0a020", bad: "#e5484d" };
const SAID = { success: "success", failure: "failure", discard: "thrown away", pause: "pause", stop: "ending", undo: "taken back", again: "the last episode again" };

export class View {
  constructor() {
    this.phase = "connecting";
    this.state = {};
    this.lapsed = false;
    this.why = "";
    this.now = { held: false, device: "", pad: "" };
    this.saidNumber = 0;
    this.status = { text: "", color: COLORS.idle };
    this.render();
  }

  welcome({ task, robot, watched }) {
    this.watched = watched;
    this.phase = "there";
    this.wasThere = true;
    this.why = "";
    $("task").textContent = task ?? "";
    $("robot").textContent = robot ?? "";
    this.render();
  }

  heard({ state, lapsed }, roundTripMs) {
    if (lapsed) this.stuttered();
    if (roundTripMs !== null) $("delay").textContent = `${Math.round(roundTripMs)} ms`;
    if (state) this.state = state;
    for (const [number, line] of state?.said ?? []) {
      if (number > this.saidNumber) this.note(line);
      this.saidNumber = Math.max(this.saidNumber, number);
    }
    this.render();
  }

  /** What is held does not count any more; told until the person takes hold anew. */
  stuttered() {
    if (!this.lapsed) navigator.vibrate?.(120);
    this.lapsed = true;
  }

  refused(why) {
    this.phase = "refused";
    this.why = why;
    this.state = {};
    this.render();
  }

  lost() {
    if (this.phase === "there") this.phase = "lost";
    this.render();
  }

  show(now) {
    const before = this.now;
    this.now = now;
    if (now.held && !before.held) this.lapsed = false;
    if (now.held !== before.held || now.device !== before.device || now.pad !== before.pad) this.render();
  }

  pressed(word) {
    this.note(SAID[word] ?? word);
  }

  stopping(sent) {
    this.note(sent ? "STOP was sent" : "STOP could not be sent: there is no connection, and the robot holds");
  }

  note(line) {
    const item = document.createElement("li");
    item.textContent = line;
    $("said").append(item);
    while ($("said").children.length > 2) $("said").firstChild.remove();
  }

  entered(kind) {
    document.body.classList.toggle("see-through", kind === "phone");
    $("enter").textContent = "Leave";
  }

  left() {
    document.body.classList.remove("see-through");
    $("enter").textContent = "Enter again";
  }

  /** [kind, headline, explanation]. */
  judge() {
    const { state, now } = this;
    if (this.phase === "connecting") return ["idle", "Connecting …", ""];
    if (this.phase === "refused") return ["bad", this.wasThere ? "The session is over" : "Not connected", this.why];
    if (this.phase === "lost") return ["warn", "Connection lost", "The robot holds. Trying again …"];
    if (state.stopped) return ["bad", "Stopped", `${state.stopped}. The terminal says how to go on.`];
    if (this.lapsed) return ["warn", "Let go, then take hold again", "The connection stuttered, and what you hold does not count."];
    if (state.paused) return ["warn", "Pause", "The robot holds and nothing is recorded."];
    if (state.holding) return ["warn", "The robot holds", state.holding];
    if (now.held) return ["moving", "You move the robot", `with the ${NAMES[now.device] ?? now.device}`];
    if (this.watched) return ["idle", "You watch over the policy", "Hold the pad, a key or a button to take over; let go and it goes on."];
    return ["idle", "The robot holds", "Hold the pad, a key or a button to move it. Let go and it holds."];
  }

  render() {
    const [kind, headline, explanation] = this.judge();
    const { state } = this;
    this.status = { text: `${state.recording ? "● " : ""}${headline}${kind === "moving" ? "" : "."} ${explanation}`, color: COLORS[kind] };
    $("status").dataset.kind = kind;
    set($("headline"), headline);
    set($("explanation"), explanation);
    document.body.dataset.phase = this.phase;
    $("recording").classList.toggle("on", Boolean(state.recording));
    set($("recording-text"), state.recording ? "Recording" : "Not recording");
    set($("pause-text"), state.paused ? "Go on" : "Pause");
    set($("episode"), state.episodes ? `${state.kept} of ${state.episodes} kept` : "");
    set($("pad-name"), this.now.pad ? `gamepad: ${this.now.pad.replace(/\s*\(.*/, "")}` : "");
  }
}

/** Change a text only where it differs, so that it is read aloud once. */
function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
