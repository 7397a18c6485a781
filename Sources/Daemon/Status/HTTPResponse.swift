struct HTTPStatus: Equatable {
  let code: Int
  let reason: String

  static let ok = HTTPStatus(code: 200, reason: "OK")
  static let badRequest = HTTPStatus(code: 400, reason: "Bad Request")
  static let notFound = HTTPStatus(code: 404, reason: "Not Found")
  static let methodNotAllowed = HTTPStatus(code: 405, reason: "Method Not Allowed")
  static let timeout = HTTPStatus(code: 408, reason: "Request Timeout")
  static let misdirected = HTTPStatus(code: 421, reason: "Misdirected Request")
  static let headTooLarge = HTTPStatus(code: 431, reason: "Request Header Fields Too Large")
  static let serverError = HTTPStatus(code: 500, reason: "Internal Server Error")
  static let versionNotSupported = HTTPStatus(code: 505, reason: "HTTP Version Not Supported")
}

struct HTTPResponse: Equatable {
  var status: HTTPStatus
  var contentType: String
  var body: [UInt8]
  /// Whether only the head is sent, as HEAD asks for.
  var isBodyLeftOut = false

  init(_ contentType: String, _ body: [UInt8]) {
    status = .ok
    self.contentType = contentType
    self.body = body
  }

  /// A refusal, with a line that says why.
  init(refusing status: HTTPStatus) {
    self.status = status
    contentType = "text/plain; charset=utf-8"
    let explanation = status == .misdirected ? Self.misdirection : ""
    body = Array("\(status.code) \(status.reason)\n\(explanation)".utf8)
  }

  /// A name that leads here may be another page's, which had it changed to read what stands here.
  private static let misdirection = """
    This page answers under 'localhost' and under addresses in digits, and not under names that lead here. From another
    machine, take a tunnel: ssh -L 8188:127.0.0.1:8188 HOST, and then http://127.0.0.1:8188/

    """

  var bytes: [UInt8] {
    var head = """
      HTTP/1.1 \(status.code) \(status.reason)\r
      Content-Type: \(contentType)\r
      Content-Length: \(body.count)\r
      Connection: close\r
      Cache-Control: no-store\r
      Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
      base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r
      X-Content-Type-Options: nosniff\r
      Referrer-Policy: no-referrer\r

      """
    if status == .methodNotAllowed { head += "Allow: GET, HEAD\r\n" }
    head += "\r\n"
    return Array(head.utf8) + (isBodyLeftOut ? [] : body)
  }
}
