// A coordinator that asks for keys, and one that goes away.

import { expect } from "@playwright/test";
import { test } from "./cluster.ts";
import { complaints } from "./watch.ts";

test("an operator comes in with a key alone, under its name, and out again", async ({ page, keyed }) => {
  const heard = complaints(page);
  await page.goto(keyed.page);
  await expect(page.getByRole("heading", { level: 1 })).toHaveText("Operators only");
  const key = page.getByLabel("Key");
  await expect(key).toBeFocused();
  await key.fill("sk-baton-wrong");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("alert")).toHaveText("The key was refused.");
  // Nobody goes on asking without a key.
  await page.waitForTimeout(1_500);
  await expect(page.getByRole("alert")).toHaveText("The key was refused.");
  await page.getByLabel("Key").fill(keyed.operator);
  await page.keyboard.press("Enter");
  await expect(page.locator("[data-node]")).toHaveCount(1);
  expect(await page.evaluate(() => [JSON.stringify(localStorage), document.cookie].join())).not.toContain(keyed.operator);

  await page.getByRole("button", { name: "Drain" }).click();
  await page.getByRole("dialog").getByRole("checkbox").check();
  await page.getByRole("dialog").getByRole("button", { name: "Drain" }).click();
  await page.getByRole("button", { name: "Undrain" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Undrain" }).click();
  await page.getByRole("link", { name: "Incidents" }).click();
  await expect(page.locator(".audit li")).toContainText(["ann undrained local", "ann drained local (even as the last one)"]);

  // Users' keys are others, and the playground asks for one of them.
  await page.getByRole("link", { name: "Playground" }).click();
  await expect(page.getByRole("alert")).toContainText("key");
  await page.getByLabel("API key").fill(keyed.user);
  await page.keyboard.press("Tab");
  await expect(page.getByLabel("Model")).toHaveValue("mock");

  await page.getByRole("button", { name: "Lock" }).click();
  await expect(page.getByRole("heading", { level: 1 })).toHaveText("Operators only");
  await page.reload();
  await expect(page.getByRole("heading", { level: 1 })).toHaveText("Operators only");
  // The browser itself notes refusals; nothing else was heard.
  expect(heard.filter((words) => !words.includes("401"))).toEqual([]);
});

test("a coordinator that is gone is told from one that is idle, and what was seen stays", async ({ page, keyed }) => {
  await page.goto(keyed.page);
  await page.getByLabel("Key").fill(keyed.operator);
  await page.keyboard.press("Enter");
  await expect(page.locator("[data-node]")).toHaveCount(1);
  await keyed.process.end("SIGKILL");
  await expect(page.getByRole("alert")).toContainText("No contact: the coordinator does not answer.");
  await expect(page.getByText("no contact", { exact: true })).toBeVisible();
  await expect(page.locator("[data-node]")).toHaveCount(1);
  await page.getByRole("button", { name: "Ask now" }).click();
  await expect(page.getByRole("alert")).toContainText("old");
});
