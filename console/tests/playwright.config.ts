import { defineConfig } from "@playwright/test";

export default defineConfig({
  testMatch: "*.spec.ts",
  outputDir: "results",
  // The machine is not idle: reaching a limit means failure, not slowness.
  timeout: 90_000,
  expect: { timeout: 20_000 },
  workers: 1,
  reporter: [["list"]],
  use: {
    viewport: { width: 1360, height: 900 },
    launchOptions: {
      executablePath: process.env["BATON_BROWSER"] ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    },
    trace: "retain-on-failure",
  },
});
