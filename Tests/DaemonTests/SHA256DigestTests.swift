import Daemon
import Testing

struct SHA256DigestTests {
  /// The examples of FIPS 180-4.
  @Test(arguments: [
    ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
  ])
  func `digests are those of the standard`(_ text: String, _ digest: String) throws {
    var whole = SHA256Digest()
    whole.update(text)
    #expect(whole.finish() == digest)
    var parts = SHA256Digest()
    for character in text { parts.update(String(character)) }
    #expect(parts.finish() == digest)
  }
}
