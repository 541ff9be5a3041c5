// Shows /asyncapi.json: each message with its fields, its examples and its limits. Every text of the document
// becomes a text node, so nothing in it can become markup.
const COMPONENTS = '#/components/schemas/'

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  made.append(...children)
  return made
}

// The part of Markdown that the document uses in a line: code, strong text, links to anchors that are not here.
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith('`')) return element('code', {}, part.slice(1, -1))
    return part.startsWith('**') ? element('b', {}, part.slice(2, -2)) : part
  })
}

function blocks(text) {
  return text.split(/\n{2,}/).flatMap((block) => {
    const lines = block.trim().split('\n')
    if (lines[0].startsWith('## ')) return [element('h2', {}, ...inline(lines[0].slice(3)))]
    if (lines[0].startsWith('|')) {
      const rows = lines.map((line) => line.slice(1, -1).split('|').map((cell) => cell.trim()))
      return [table(rows[0], rows.slice(2).map((row) => row.map(inline)))]
    }
    if (lines[0].startsWith('- ')) {
      const items = block.trim().slice(2).split('\n- ')
      return [element('ul', {}, ...items.map((item) => element('li', {}, ...inline(item.replace(/\s+/g, ' ')))))]
    }
    return block.trim() ? [element('p', {}, ...inline(lines.join(' ')))] : []
  })
}

function table(heads, rows) {
  const head = element('tr', {}, ...heads.map((text) => element('th', {}, ...inline(text))))
  const body = rows.map((row) => element('tr', {}, ...row.map((cell) => element('td', {}, ...cell))))
  return element('div', { class: 'scrolls' }, element('table', {}, head, ...body))
}

function type_of(schema) {
  if (schema.const !== undefined) return JSON.stringify(schema.const)
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(', ')
  if (schema.$ref) return schema.$ref.replace(COMPONENTS, '')
  if (schema.anyOf || schema.allOf) return (schema.anyOf ?? schema.allOf).map(type_of).join(' or ')
  if ([schema.type].flat().includes('array')) {
    return [`list of ${type_of(schema.items ?? {})}`, ...[schema.type].flat().slice(1)].join(' or ')
  }
  if (schema.type === 'object' && schema.additionalProperties?.type) {
    return `object of ${type_of(schema.additionalProperties)}`
  }
  const bounds = [
    ['minimum', 'from'], ['maximum', 'to'], ['minLength', 'at least', 'characters'],
    ['maxLength', 'at most', 'characters'], ['maxItems', 'at most', 'entries'],
  ]
  const told = bounds.filter(([key]) => schema[key] !== undefined)
    .map(([key, words, unit = '']) => `${words} ${schema[key]} ${unit}`.trim())
  const kinds = [schema.type ?? 'any value'].flat()
  if (schema.format) kinds[0] = schema.format
  return [kinds.join(' or '), ...told].join(', ')
}

function fields(schema) {
  return table(['field', 'type', 'meaning'], Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const required = (schema.required ?? []).includes(name)
    const marks = required ? [element('span', { class: 'required', title: 'required' }, ' *')] : []
    return [[element('code', {}, name), ...marks], [type_of(field)], inline(field.description ?? '')]
  }))
}

function section(key, message, schemas, replies) {
  const schema = schemas[message.payload.$ref.replace(COMPONENTS, '')]
  const [direction] = key.split('_')
  const parts = parts_in(schema, schemas)
  return element(
    'section', { id: key },
    element('h2', {}, message.name, element('span', { class: `mark ${direction}` }, message.summary.slice(0, -1))),
    ...blocks(message.description),
    ...(replies ? [element('p', {}, 'Answer: ', ...replies)] : []),
    fields(schema),
    ...parts.flatMap((name) => [
      element('h3', {}, name), ...blocks(schemas[name].description), ...(schemas[name].properties ? [fields(schemas[name])] : []),
    ]),
    element('h3', {}, 'Examples'),
    ...message.examples.map((one) => element('pre', {}, JSON.stringify(one.payload, null, 2))),
    ...(message['x-limits'] ? [element('h3', {}, 'Limits'), limits(message['x-limits'])] : []),
  )
}

function limits(rows) {
  return table(['limit', 'counted for each', 'default', 'setting', 'past the limit'], rows.map((one) => [
    inline(one.what), [one.of_one], [one.default],
    inline(one.settings.map((setting) => `\`${setting}\``).join(', ') || 'fixed'), inline(one.past_it.join(', ')),
  ]))
}

// The schemas of the parts that a message has, in the order of their first mention.
function parts_in(schema, schemas) {
  const found = []
  const waiting = [schema]
  while (waiting.length) {
    for (const [, name] of JSON.stringify(waiting.shift()).matchAll(/#\/components\/schemas\/(\w+)/g)) {
      if (found.includes(name)) continue
      found.push(name)
      waiting.push(schemas[name])
    }
  }
  return found
}

function answers_of(operation) {
  const names = (operation?.reply?.messages ?? []).map((one) => one.$ref.split('/').pop())
  if (!names.length) return null
  return names.flatMap((name, place) => [
    ...(place ? [' or '] : []), element('a', { href: `#${name}` }, name.replace('server_', '')),
  ])
}

async function main() {
  const page = document.getElementById('page')
  try {
    const answer = await fetch('../asyncapi.json')
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`)
    const { info, channels, components, operations } = await answer.json()
    const messages = Object.entries(components.messages)
    page.replaceChildren(
      element('section', {}, element('h1', {}, `${info.title}: messages of the WebSocket`), ...blocks(info.description)),
      ...messages.map(([key, one]) =>
        section(key, one, components.schemas, answers_of(operations[key.replace('device_', '')]))),
      element('section', {}, element('h2', {}, 'Limits of a connection'), limits(channels.sync['x-limits'])),
    )
    for (const [direction, title] of [['device', 'From the device'], ['server', 'From the server']]) {
      const own = messages.filter(([key]) => key.startsWith(direction))
      document.getElementById('index').append(
        element('h2', {}, title),
        ...own.map(([key, one]) => element('a', { href: `#${key}` }, one.name)),
      )
    }
    document.querySelector(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView()
  } catch (error) {
    page.replaceChildren(element('p', {}, `The document cannot be read: ${error.message}`))
  }
}

main()
