// Uploads files with tus-js-client as it is. What to do comes as one JSON object on stdin; what happened
// goes out as one JSON object a line.
//
// {"uploads": [{"path", "options", "spoil", "abort_after", "terminate", "checksums", "stream"}]}
// options: tus-js-client's own. checksums: send Upload-Checksum, spoil: how many of them are wrong.
// abort_after: stop after so many acknowledged bytes, and terminate says whether for good.
// stream: the file is a stream of unknown length.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Readable } from 'node:stream'
import { Upload } from 'tus-js-client'

const say = (event) => console.log(JSON.stringify(event))

function run(told, number) {
  const content = readFileSync(told.path)
  let spoil = told.spoil ?? 0
  return new Promise((resolve) => {
    const options = {
      retryDelays: [0, 10, 20, 50, 100, 200, 200, 200],
      ...told.options,
      onUploadUrlAvailable: () => say({ number, event: 'url', url: upload.url }),
      onSuccess: () => {
        say({ number, event: 'success', url: upload.url })
        resolve()
      },
      onError: (error) => {
        const status = error.originalResponse?.getStatus() ?? 0
        const body = error.originalResponse?.getBody() ?? ''
        say({ number, event: 'error', status, body, text: error.message })
        resolve()
      },
      onChunkComplete: (_, accepted) => {
        say({ number, event: 'chunk', accepted })
        if (told.abort_after !== undefined && accepted >= told.abort_after) {
          upload.abort(told.terminate ?? false).then(
            () => say({ number, event: 'aborted', url: upload.url }),
            (error) => say({ number, event: 'error', status: 0, body: '', text: error.message }),
          ).then(resolve)
        }
      },
      onAfterResponse: (request, response) => {
        say({ number, event: 'answer', method: request.getMethod(), status: response.getStatus() })
      },
    }
    if (told.checksums) {
      options.onBeforeRequest = (request) => {
        if (request.getMethod() !== 'PATCH') return
        const from = Number(request.getHeader('Upload-Offset'))
        const chunk = content.subarray(from, from + options.chunkSize)
        const hash = createHash(told.checksums).update(chunk)
        if (spoil-- > 0) hash.update('and something else')
        request.setHeader('Upload-Checksum', `${told.checksums} ${hash.digest('base64')}`)
      }
    }
    if (told.retry_status !== undefined) {
      options.onShouldRetry = (error) => error.originalResponse?.getStatus() === told.retry_status
    }
    const upload = new Upload(told.stream ? Readable.from([content], { objectMode: false }) : content, options)
    upload.start()
  })
}

const { uploads } = JSON.parse(readFileSync(0))
await Promise.all(uploads.map(run))
