// What axe finds on every page: names, roles, contrast.

import { expect } from "@playwright/test";
import axe from "axe-core";
import { test, Traffic } from "./cluster.ts";
import { open, PATHS } from "./watch.ts";

for (const colorScheme of ["light", "dark"] as const) {
  test(`every page can be read by everyone, ${colorScheme}`, async ({ page, cluster }) => {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    const traffic = new Traffic(cluster.api, 2, 40);
    try {
      for (const path of PATHS) {
        await open(page, cluster.page, path);
        await page.waitForResponse(/\/admin\/v1\/pace/);
        await page.evaluate(axe.source);
        const found = await page.evaluate(async () => {
          const { violations } = await (window as unknown as { axe: typeof axe }).axe.run();
          return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.failureSummary ?? node.html).join("; ")}`);
        });
        expect(found, path).toEqual([]);
      }
    } finally {
      await traffic.stop();
    }
  });
}
