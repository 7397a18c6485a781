import FoundationEssentials

// The one form of the JSON that programs outside read: reports, states, reasons.

extension JSONEncoder {
  /// Keys in snake_case and in order, on lines of their own. A number that is none is a string, as it must not cost a person
  /// the rest.
  public static var ofReports: JSONEncoder {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: NotANumber.positive, negativeInfinity: NotANumber.negative, nan: NotANumber.none)
    return encoder
  }

  /// `value` with a line feed at its end.
  public func lines(_ value: some Encodable) throws -> [UInt8] {
    Array(try encode(value)) + [UInt8(ascii: "\n")]
  }
}

extension JSONDecoder {
  /// Reads what ``JSONEncoder/ofReports`` writes.
  public static var ofReports: JSONDecoder {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    decoder.nonConformingFloatDecodingStrategy = .convertFromString(
      positiveInfinity: NotANumber.positive, negativeInfinity: NotANumber.negative, nan: NotANumber.none)
    return decoder
  }
}

private enum NotANumber {
  static let (positive, negative, none) = ("Infinity", "-Infinity", "NaN")
}
