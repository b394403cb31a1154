// Pictures of every page, light, dark and narrow, under traffic: into BATON_SCREENSHOTS, if it names a folder.

import { expect } from "@playwright/test";
import { mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { test, Traffic } from "./cluster.ts";
import { ROOT } from "./processes.ts";
import { open, PATHS } from "./watch.ts";

const folder = process.env["BATON_SCREENSHOTS"] || undefined;

const LOOKS = [
  { name: "light", colorScheme: "light", size: { width: 1360, height: 900 } },
  { name: "dark", colorScheme: "dark", size: { width: 1360, height: 900 } },
  { name: "narrow", colorScheme: "light", size: { width: 360, height: 760 } },
] as const;

test("pictures of every page", async ({ page, cluster }) => {
  test.skip(folder === undefined, "BATON_SCREENSHOTS names no folder");
  test.setTimeout(180_000);
  const out = resolve(ROOT, folder ?? "");
  mkdirSync(out, { recursive: true });
  const traffic = new Traffic(cluster.api, 3);
  try {
    await open(page, cluster.page, "playground");
    await page.getByLabel("Most tokens").fill("64");
    await page.getByLabel("Your message").fill("What is a relay race?");
    await page.keyboard.press("Enter");
    await expect(page.locator(".bill")).toBeVisible();
    // Charts want a past.
    await page.waitForTimeout(30_000);
    for (const { name, colorScheme, size } of LOOKS) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize(size);
      for (const path of PATHS) {
        await page.evaluate((path) => (location.hash = `#/${path}`), path);
        await page.waitForTimeout(1_500);
        await page.screenshot({ path: join(out, `${path}-${name}.png`), fullPage: path !== "playground" });
      }
    }
  } finally {
    await traffic.stop();
  }
});
