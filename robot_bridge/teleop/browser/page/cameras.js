// The cameras' newest pictures, each on a canvas; one that stops coming says so.

const STALE_MS = 1000;

export class Cameras {
  /** `root`: element that gets a figure for every camera. */
  constructor(root) {
    this.root = root;
    this.shown = new Map();
    setInterval(() => this.judge(), 250);
  }

  async show(name, blob) {
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob);
    } catch {
      return; // a damaged picture is one that did not come
    }
    const camera = this.shown.get(name) ?? this.add(name);
    const { canvas } = camera;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    const now = performance.now();
    camera.rate = 0.9 * camera.rate + 0.1 * (1000 / Math.max(now - camera.at, 1));
    camera.at = now;
    camera.number++;
  }

  add(name) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Camera ${name}`);
    const caption = document.createElement("figcaption");
    const label = document.createElement("span");
    label.textContent = name;
    const note = document.createElement("span");
    note.className = "note";
    caption.append(label, note);
    figure.append(canvas, caption);
    figure.dataset.camera = name;
    figure.onclick = () => this.enlarge(figure);
    this.root.querySelector(".empty")?.remove();
    this.root.append(figure);
    const camera = { canvas, figure, note, at: performance.now(), rate: 0, number: 0 };
    this.shown.set(name, camera);
    if (this.shown.size === 1) this.enlarge(figure);
    return camera;
  }

  enlarge(figure) {
    for (const { figure: other } of this.shown.values()) other.classList.toggle("large", other === figure);
  }

  judge() {
    const now = performance.now();
    for (const camera of this.shown.values()) {
      const age = now - camera.at;
      camera.figure.classList.toggle("stale", age > STALE_MS);
      camera.note.textContent = age > STALE_MS ? `no picture for ${Math.round(age / 1000)} s` : `${Math.round(camera.rate)} Hz`;
    }
  }
}
