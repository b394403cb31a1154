// Light, dark, or as the system has it.

import { effect, signal } from "@preact/signals";

export const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const NAME = "baton.theme";
const kept = THEMES.find((theme) => theme === localStorage.getItem(NAME));

export const theme = signal<Theme>(kept ?? "system");

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
  localStorage.setItem(NAME, theme.value);
});
