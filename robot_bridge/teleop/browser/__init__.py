"""A page in a browser as a person's device: pointer, keyboard, gamepad, headset and phone, with live pictures and a stop button."""
