// What the person chose of how they move the robot, kept in this browser.

const SIDES = { behind: 0, facing: Math.PI, left: -Math.PI / 2, right: Math.PI / 2 };

export class Settings {
  /** `onChange`: called when motions mean something else than before. */
  constructor(onChange) {
    this.onChange = onChange;
    this.arms = 1;
    this.arm = 0;
    this.speedInput = document.getElementById("speed");
    this.sideInput = document.getElementById("side");
    this.armButton = document.getElementById("arm");
    this.speedInput.value = localStorage.getItem("speed") ?? "50";
    this.sideInput.value = localStorage.getItem("side") ?? "behind";
    this.speedInput.oninput = () => localStorage.setItem("speed", this.speedInput.value);
    this.sideInput.onchange = () => {
      localStorage.setItem("side", this.sideInput.value);
      onChange();
    };
    this.armButton.onclick = () => this.nextArm();
  }

  begin({ arms }) {
    this.arms = arms;
    this.arm = Math.min(this.arm, arms - 1);
    this.showArm();
  }

  /** Share of the largest step; twice that is the scale of what is moved by hand. */
  get speed() {
    return Number(this.speedInput.value) / 100;
  }

  /** How the person's forth is turned against the robot's, rad. */
  get yaw() {
    return SIDES[this.sideInput.value] ?? 0;
  }

  nextArm() {
    this.arm = (this.arm + 1) % this.arms;
    this.showArm();
    this.onChange();
  }

  showArm() {
    this.armButton.hidden = this.arms < 2;
    this.armButton.textContent = `Arm ${this.arm + 1} of ${this.arms}`;
  }
}
