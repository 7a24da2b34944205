// The connection to the robot's computer: words on one socket, pictures on another.

const RETRY_MS = 1000;
const MOST_WAITING_BYTES = 4096; // more than this not yet sent: the network is too slow, and old words are worth nothing

/** The token of the link, taken out of the address so that it stays in no history. */
function takeToken() {
  const token = location.hash.slice(1);
  if (token) history.replaceState(null, "", location.pathname);
  return token;
}

export class Link {
  /** `on`: welcome(message), heard(message), refused(why), lost(), picture(name, blob) -> Promise. */
  constructor(on) {
    this.on = on;
    this.token = takeToken();
    this.session = sessionStorage.getItem("session") || "";
    this.heard = 0;
    this.number = 0;
    this.sent = new Map();
    this.roundTripMs = null;
    this.over = false;
    this.deadManMs = 200;
  }

  get open() {
    return this.control?.readyState === WebSocket.OPEN && Boolean(this.welcomed);
  }

  connect() {
    if (!this.token && !this.session) {
      this.refuse("open the link that the terminal shows: it works once");
      return;
    }
    const socket = (this.control = new WebSocket(`wss://${location.host}/control`));
    this.welcomed = false;
    socket.onopen = () => socket.send(JSON.stringify({ kind: "hello", token: this.token, session: this.token ? "" : this.session }));
    socket.onmessage = (event) => this.receive(JSON.parse(event.data));
    socket.onclose = () => this.gone(socket);
  }

  receive(message) {
    if (message.kind === "welcome") {
      this.token = "";
      this.session = message.session;
      sessionStorage.setItem("session", this.session);
      this.welcomed = true;
      this.heard = message.at;
      this.deadManMs = 1000 * message.dead_man_s;
      this.number = 0;
      this.sent.clear();
      this.watch();
      this.on.welcome(message);
      this.say("pointer", []); // nobody holds when a page opens
    } else if (message.kind === "heard") {
      this.heard = message.at;
      const at = this.sent.get(message.number);
      if (at !== undefined) this.roundTripMs = performance.now() - at;
      for (const number of this.sent.keys()) if (number <= message.number) this.sent.delete(number);
      this.on.heard(message);
    } else if (message.kind === "refused") {
      this.refuse(message.why);
    }
  }

  refuse(why) {
    this.over = true;
    this.welcomed = false;
    this.control?.close();
    this.pictures?.close();
    this.on.refused(why);
  }

  gone(socket) {
    if (socket !== this.control || this.over) return;
    this.welcomed = false;
    this.pictures?.close();
    this.on.lost();
    setTimeout(() => this.connect(), RETRY_MS);
  }

  /** Say what the hands do; nothing is said where the network has not taken what was said before. */
  say(device, hands) {
    if (!this.open || this.control.bufferedAmount > MOST_WAITING_BYTES) return;
    this.sent.set(++this.number, performance.now());
    this.control.send(JSON.stringify({ kind: "sample", number: this.number, heard: this.heard, device, hands }));
  }

  /** A button; true if it could be sent. */
  word(word) {
    if (!this.open) return false;
    this.control.send(JSON.stringify({ kind: "word", word }));
    return true;
  }

  /** Ask for pictures, the next one when one was shown: there is never a queue. */
  watch() {
    this.pictures?.close();
    const socket = (this.pictures = new WebSocket(`wss://${location.host}/pictures`));
    socket.binaryType = "arraybuffer";
    const ask = () => socket.readyState === WebSocket.OPEN && socket.send("next");
    socket.onopen = () => {
      socket.send(JSON.stringify({ kind: "hello", session: this.session }));
      ask();
      ask();
    };
    socket.onmessage = async (event) => {
      if (typeof event.data === "string") return;
      const bytes = new Uint8Array(event.data);
      if (bytes.length) {
        const name = new TextDecoder().decode(bytes.subarray(1, 1 + bytes[0]));
        await this.on.picture(name, new Blob([bytes.subarray(1 + bytes[0])], { type: "image/jpeg" }));
      }
      ask();
    };
    socket.onclose = () => {
      if (socket === this.pictures && this.open) setTimeout(() => socket === this.pictures && this.open && this.watch(), RETRY_MS);
    };
  }
}
