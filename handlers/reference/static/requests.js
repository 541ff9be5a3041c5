// Shows /openapi.json with RapiDoc. The page has no origin, so the document is fetched here and handed over.
const shown = document.querySelector('rapi-doc')
const fetched = await_json('openapi.json')
customElements.whenDefined('rapi-doc').then(async () => {
  try {
    shown.loadSpec(await fetched)
  } catch (error) {
    shown.replaceWith(`The document cannot be read: ${error.message}`)
  }
})

async function await_json(path) {
  const answer = await fetch(path)
  if (!answer.ok) throw new Error(`HTTP ${answer.status}`)
  return answer.json()
}
