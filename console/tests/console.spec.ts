// The console over a split cluster of processes: what it shows is what is there.

import { expect, type Locator, type Page } from "@playwright/test";
import { test, Traffic } from "./cluster.ts";
import { complaints, doesNotOverflow, numbers, open, PATHS } from "./watch.ts";

const nodeCard = (page: Page, node: string): Locator => page.locator(`[data-node="${node}"]`);

/** Waits for a line of a handoff that moves so: lines come and go. */
async function isDrawn(page: Page, animation: string): Promise<void> {
  await page.waitForFunction((animation) => {
    const line = document.querySelector(".handoff");
    return line !== null && getComputedStyle(line).animationName === animation;
  }, animation);
}

async function confirm(page: Page, verb: string): Promise<void> {
  await page.getByRole("dialog").getByRole("button", { name: verb }).click();
  await expect(page.getByRole("dialog")).toBeHidden();
}

test("the cluster is shown as two pools whose pages sum to what they hold", async ({ page, cluster }) => {
  await open(page, cluster.page, "cluster");
  for (const [pool, nodes] of [["Prefill pool", ["prefill-1", "prefill-2"]], ["Decode pool", ["decode-1", "decode-2"]]] as const) {
    await expect(page.getByRole("region", { name: pool }).getByRole("heading", { level: 3 })).toHaveText([...nodes]);
  }
  for (const card of await page.locator("[data-node]").all()) {
    await expect(async () => {
      const [head, states] = await card.evaluate((card) => [
        card.querySelector(".figures")?.textContent ?? "",
        [...card.querySelectorAll(".pages-table td")].map((cell) => cell.textContent).join(" "),
      ]);
      const parts = numbers(states ?? "");
      expect(parts).toHaveLength(6);
      expect(parts.reduce((sum, part) => sum + part, 0)).toBe(1024);
      expect(numbers(head ?? "")[1]).toBe(1024);
    }).toPass();
  }
});

test("handoffs move between the pools, links are measured, and times are drawn against their budgets", async ({ page, cluster }) => {
  await open(page, cluster.page, "cluster");
  const traffic = new Traffic(cluster.api, 4, 40);
  try {
    await isDrawn(page, "move");
    await page.emulateMedia({ reducedMotion: "reduce" });
    await isDrawn(page, "none");
    await expect(page.locator(".flow-rate").first()).toHaveText(/[MG]B\/s/);
    const links = page.getByRole("region", { name: "Links" }).getByRole("row");
    await expect(links).toHaveCount(5);
    await expect(links.filter({ hasText: "prefill-1" }).first()).toContainText("tcp");
    await page.getByRole("link", { name: "Time" }).click();
    const first = page.getByRole("figure").filter({ hasText: "Time to first token" });
    await expect(first.locator("path.tone-a")).toHaveAttribute("d", /^M[\d.]+ [\d.]+h\.01L/);
    await expect(first.locator(".legend")).toHaveText(/p50.*(ms|s).*p95.*(ms|s).*budget 1\.00/);
    await expect(page.getByRole("figure").filter({ hasText: "Between tokens" }).locator(".legend")).toHaveText(/budget 50\.0/);
  } finally {
    await traffic.stop();
  }
});

test("a request is seen and cancelled, its reader is told, and who did it is kept", async ({ page, cluster }) => {
  await open(page, cluster.page, "requests");
  await expect(page.getByText("No requests in flight")).toBeVisible();
  const body = { model: "smollm2-135m", messages: [{ role: "user", content: "Count." }], max_tokens: 1800, stream: true, ignore_eos: true };
  const answer = fetch(`${cluster.api}/v1/chat/completions`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  const told = answer.then((response) => response.text());
  await page.getByRole("button", { name: /^Cancel request/ }).click();
  await expect(page.getByRole("dialog")).toContainText("Its reader is told");
  await confirm(page, "Cancel request");
  expect(await told).toContain("an operator cancelled the request");
  await expect(page.getByText("No requests in flight")).toBeVisible();
  await page.getByRole("link", { name: "Incidents" }).click();
  await expect(page.locator(".audit li").first()).toContainText(/anyone cancelled request [0-9a-f]{8}/);
});

test("a node is drained and undrained, and the last one only if insisted on", async ({ page, cluster }) => {
  await open(page, cluster.page, "cluster");
  await nodeCard(page, "decode-2").getByRole("button", { name: "Drain" }).click();
  await expect(page.getByRole("dialog")).toContainText("New work of this kind goes to decode-1.");
  await confirm(page, "Drain");
  await expect(page.getByRole("status")).toHaveText("decode-2 is draining");
  await expect(nodeCard(page, "decode-2").locator(".health")).toHaveText("draining");

  await nodeCard(page, "decode-1").getByRole("button", { name: "Drain" }).click();
  const dialog = page.getByRole("dialog");
  await expect(dialog.getByRole("button", { name: "Drain" })).toBeDisabled();
  await dialog.getByRole("checkbox").check();
  await expect(dialog.getByRole("button", { name: "Drain" })).toBeEnabled();
  await page.keyboard.press("Escape");
  await expect(dialog).toBeHidden();
  await expect(nodeCard(page, "decode-1").locator(".health")).toHaveText("ready");

  await nodeCard(page, "decode-2").getByRole("button", { name: "Undrain" }).click();
  await confirm(page, "Undrain");
  await expect(nodeCard(page, "decode-2").locator(".health")).toHaveText("ready");
});

test("a node changes its role and its pool", async ({ page, cluster }) => {
  await open(page, cluster.page, "cluster");
  const decodePool = page.getByRole("region", { name: "Decode pool" });
  await nodeCard(page, "prefill-2").getByRole("button", { name: "Make decode" }).click();
  await expect(page.getByRole("dialog")).toContainText("It gets no new prefill work and finishes what it has.");
  await confirm(page, "Change role");
  await expect(decodePool.getByRole("heading", { name: "prefill-2" })).toBeVisible();
  await nodeCard(page, "prefill-2").getByRole("button", { name: "Make prefill" }).click();
  await confirm(page, "Change role");
  await expect(decodePool.getByRole("heading", { name: "prefill-2" })).toBeHidden();
  await page.getByRole("link", { name: "Incidents" }).click();
  await expect(page.locator(".audit li").first()).toContainText("anyone changed the roles of prefill-2 (prefill)");
});

test("the playground streams an answer and shows where its time went", async ({ page, cluster }) => {
  await open(page, cluster.page, "playground");
  await expect(page.getByLabel("Model")).toHaveValue("smollm2-135m");
  await page.getByLabel("Most tokens").fill("24");
  await page.getByLabel("Your message").fill("What is a relay race, and why do its runners carry a baton?");
  await page.keyboard.press("Enter");
  const turn = page.getByRole("list", { name: "Conversation" }).getByRole("listitem");
  await expect(turn.locator(".answer > p").first()).toHaveText(/\w+ \w+/);
  await expect(turn.getByRole("img")).toHaveAccessibleName(/^Timeline: queue .*, prefill .*, wait .*, decode /);
  await expect(turn.locator(".bill")).toContainText(/prefill-\d ran the prompt and handed over/);
  const widths = await turn.locator(".timeline i").evaluateAll((parts) => parts.map((part) => part.getBoundingClientRect().width));
  expect(widths).toHaveLength(5);
  expect(Math.max(...widths)).toBeGreaterThan(100);

  // The model may have little to tell; this story goes on until somebody stops it.
  await page.route("**/chat/completions", (route) =>
    route.continue({ postData: JSON.stringify({ ...(route.request().postDataJSON() as object), ignore_eos: true }) }),
  );
  await page.getByLabel("Most tokens").fill("1500");
  await page.getByLabel("Your message").fill("Tell me a long story.");
  await page.getByRole("button", { name: "Send" }).click();
  await expect(turn.last().locator(".answer > p").first()).toHaveText(/\w+ \w+/);
  await page.getByRole("button", { name: "Stop" }).click();
  await expect(turn.last()).toContainText("Stopped.");
});

test("a coordinator without nodes says so", async ({ page, cluster }) => {
  await open(page, cluster.lonely, "cluster");
  await expect(page.getByText("No nodes", { exact: true })).toBeVisible();
  await expect(page.getByText("not ready")).toBeVisible();
});

test("pages load nothing from elsewhere, fit narrow screens, and break no rule of their policy", async ({ page, cluster }) => {
  const heard = complaints(page);
  const asked = new Set<string>();
  page.on("request", (request) => asked.add(new URL(request.url()).origin));
  await page.setViewportSize({ width: 360, height: 760 });
  for (const path of PATHS) {
    await open(page, cluster.page, path);
    await page.waitForResponse(/\/admin\/v1\/pace/);
    await doesNotOverflow(page);
  }
  expect(heard).toEqual([]);
  expect([...asked]).toEqual([new URL(cluster.page).origin]);
});

test("all of it can be reached by keys, and colours follow the system until they are chosen", async ({ page, cluster }) => {
  const ground = (): Promise<string> => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  await page.emulateMedia({ colorScheme: "dark" });
  await open(page, cluster.page, "cluster");
  await expect(page.locator("[data-node]")).toHaveCount(4);
  const dark = await ground();
  await page.emulateMedia({ colorScheme: "light" });
  const light = await ground();
  expect(light).not.toBe(dark);
  await page.getByRole("button", { name: "Colours: Auto" }).click();
  await page.getByRole("button", { name: "Colours: Light" }).click();
  expect(await ground()).toBe(dark);

  await page.getByRole("link", { name: "Skip to the page" }).focus();
  await page.keyboard.press("Tab");
  await expect(page.getByRole("link", { name: "Cluster" })).toBeFocused();
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement ?? document.body).outlineStyle);
  expect(outline).toBe("solid");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("heading", { level: 1 })).toHaveText("Time");
  await page.goBack();
  await nodeCard(page, "decode-1").getByRole("button", { name: "Drain" }).focus();
  await page.keyboard.press("Enter");
  await expect(page.getByRole("dialog")).toBeVisible();
  await page.keyboard.press("Escape");
  await expect(nodeCard(page, "decode-1").getByRole("button", { name: "Drain" })).toBeFocused();
});
