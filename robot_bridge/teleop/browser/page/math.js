// Poses along the robot's axes: x forth, y left, z up; quaternions are [w, x, y, z].

/** Hamilton product of two quaternions. */
export function multiply(a, b) {
  return [
    a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
    a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
    a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
    a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
  ];
}

/** A turn about an axis (x, y, z of length 1) in rad. */
export function about(axis, angle) {
  const s = Math.sin(angle / 2);
  return [Math.cos(angle / 2), axis[0] * s, axis[1] * s, axis[2] * s];
}

/** Rotate a vector about the vertical. */
export function turnVector([x, y, z], yaw) {
  const c = Math.cos(yaw), s = Math.sin(yaw);
  return [c * x - s * y, s * x + c * y, z];
}

/** The same rotation seen by somebody whose axes are turned about the vertical: its axis turns along. */
export function turnRotation([w, ...axis], yaw) {
  return [w, ...turnVector(axis, yaw)];
}

/** WebXR's axes (x right, y up, z back) to the robot's. */
export const fromXr = ({ x, y, z }) => [-z, -x, y];

/** A rotation given in WebXR's axes. */
export const rotationFromXr = (q) => [q.w, ...fromXr(q)];

/**
 * How a phone is turned, from the angles in degrees that browsers report of it (W3C Device Orientation: about z, then x', then y''),
 * with the direction of its upper edge at heading `north` as forth.
 */
export function rotationOfPhone(alpha, beta, gamma, north) {
  const rad = Math.PI / 180;
  const q = multiply(multiply(about([0, 0, 1], alpha * rad - north), about([1, 0, 0], beta * rad)), about([0, 1, 0], gamma * rad));
  return [q[0], q[2], -q[1], q[3]]; // its x is right and its y forth
}
