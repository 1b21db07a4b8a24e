// Runs the tests: node runs no TypeScript, so each test file is bundled first.
//   node tools/test.mjs [file…]
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'

const files = process.argv.length > 2
  ? process.argv.slice(2)
  : readdirSync('test').filter((f) => f.endsWith('.test.ts')).map((f) => join('test', f))
// Inside the package, so that the bundles find its node_modules.
const out = mkdtempSync('.test-')
try {
  await build({
    entryPoints: files, outdir: out, outExtension: { '.js': '.mjs' }, bundle: true,
    platform: 'node', format: 'esm', packages: 'external', sourcemap: 'inline', target: 'node20', logLevel: 'warning',
  })
  const tests = readdirSync(out).map((f) => join(out, f))
  const { status } = spawnSync(process.execPath, ['--enable-source-maps', '--test', '--test-timeout=60000', '--test-reporter=spec', ...tests], { stdio: 'inherit' })
  process.exitCode = status ?? 1
} finally {
  rmSync(out, { recursive: true, force: true })
}
