// Reads an AsyncAPI document on its standard input, and writes what the parser of its authors says of it.
import { Parser } from '@asyncapi/parser'
import { text } from 'node:stream/consumers'

const { document, diagnostics } = await new Parser().parse(await text(process.stdin))
const said = diagnostics.map(({ message, path }) => `${path.join('.')}: ${message}`)
process.stdout.write(JSON.stringify({ messages: document?.allMessages().length ?? 0, said }))
