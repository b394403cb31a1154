// What every page must keep to, and how pages are opened.

import { expect, type Page } from "@playwright/test";

export const PATHS = ["cluster", "time", "requests", "incidents", "playground"] as const;

/** Notes whatever the browser complains of: errors, and what the policy of the pages forbids. */
export function complaints(page: Page): string[] {
  const heard: string[] = [];
  page.on("pageerror", (error) => heard.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") heard.push(message.text());
  });
  return heard;
}

export async function open(page: Page, console_: string, path: (typeof PATHS)[number]): Promise<void> {
  await page.goto(`${console_}#/${path}`);
  await expect(page.getByRole("heading", { level: 1 })).toHaveText(new RegExp(path, "i"));
}

export async function doesNotOverflow(page: Page): Promise<void> {
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  expect(wide).toBe(0);
}

/** The numbers in a text, thousands' commas and all. */
export function numbers(text: string): number[] {
  return [...text.matchAll(/\d[\d,]*/g)].map(([number]) => Number(number.replaceAll(",", "")));
}
