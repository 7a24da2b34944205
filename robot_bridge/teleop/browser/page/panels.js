// What somebody with a headset on sees: the cameras side by side in front of them, and one line of text below.

const DISTANCE_M = 1.4, HEIGHT_M = 0.6, GAP_M = 0.05;

const VERTEX = `
attribute vec2 corner;
uniform mat4 projection, view;
uniform vec4 panel; // centre x, centre y, width, height in metres
varying vec2 at;
void main() {
  at = vec2(corner.x, 1.0 - corner.y);
  vec2 p = panel.xy + (corner - 0.5) * panel.zw;
  gl_Position = projection * view * vec4(p, -${DISTANCE_M.toFixed(2)}, 1.0);
}`;
const FRAGMENT = `
precision mediump float;
varying vec2 at;
uniform sampler2D picture;
void main() { gl_FragColor = texture2D(picture, at); }`;

export class Panels {
  /** `level`: height of the pictures' centres above the origin, metres. */
  constructor(gl, level) {
    this.gl = gl;
    this.level = level;
    this.program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(this.program, shader);
    }
    gl.bindAttribLocation(this.program, 0, "corner");
    gl.linkProgram(this.program);
    this.places = Object.fromEntries(["projection", "view", "panel"].map((name) => [name, gl.getUniformLocation(this.program, name)]));
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    this.textures = new Map();
    this.text = document.createElement("canvas");
    this.text.width = 1024;
    this.text.height = 96;
    this.written = null;
    this.numbers = new Map();
    this.panels = [];
  }

  /** Bring the textures up to date, once per frame. */
  prepare(cameras, status) {
    const widths = cameras.map(({ canvas }) => (HEIGHT_M * canvas.width) / Math.max(canvas.height, 1));
    let left = -(widths.reduce((a, b) => a + b, 0) + GAP_M * (cameras.length - 1)) / 2;
    this.panels = cameras.map(({ name, canvas, number }, i) => {
      if (this.numbers.get(name) !== number) this.upload(name, canvas);
      this.numbers.set(name, number);
      const centre = left + widths[i] / 2;
      left += widths[i] + GAP_M;
      return { texture: this.textures.get(name), panel: [centre, this.level, widths[i], HEIGHT_M] };
    });
    if (status.text !== this.written) this.write(status);
    this.panels.push({ texture: this.textures.get(""), panel: [0, this.level - HEIGHT_M / 2 - 0.1, 1.28, 0.12] });
  }

  draw(projection, view) {
    const { gl } = this;
    gl.useProgram(this.program);
    gl.uniformMatrix4fv(this.places.projection, false, projection);
    gl.uniformMatrix4fv(this.places.view, false, view);
    for (const { texture, panel } of this.panels) {
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.uniform4fv(this.places.panel, panel);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
  }

  write({ text, color }) {
    const pen = this.text.getContext("2d");
    pen.fillStyle = "#10161c";
    pen.fillRect(0, 0, this.text.width, this.text.height);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 16, this.text.height);
    pen.fillStyle = "#ffffff";
    pen.font = "44px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillText(text, 40, this.text.height / 2, this.text.width - 60);
    this.written = text;
    this.upload("", this.text);
  }

  upload(name, canvas) {
    const { gl } = this;
    if (!this.textures.has(name)) this.textures.set(name, gl.createTexture());
    gl.bindTexture(gl.TEXTURE_2D, this.textures.get(name));
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, canvas);
    for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.LINEAR);
  }
}
