// Text for people, in HTML: escaping and number formats, for the report's page and the daemon's.

/// `text` with everything escaped that means something in HTML, attributes included.
package func escaped(_ text: String) -> String {
  var result = ""
  for scalar in text.unicodeScalars {
    switch scalar {
    case "&": result += "&amp;"
    case "<": result += "&lt;"
    case ">": result += "&gt;"
    case "\"": result += "&quot;"
    case "'": result += "&#39;"
    default: result.unicodeScalars.append(scalar)
    }
  }
  return result
}

/// `value` with `digits` decimals.
package func fixed(_ value: Double, _ digits: Int) -> String {
  var unit = 1.0
  for _ in 0..<digits { unit *= 10 }
  guard value.isFinite, (abs(value) * unit) < 1e15 else { return "\(value)" }
  let scaled = Int((abs(value) * unit).rounded())
  let sign = value < 0 && scaled > 0 ? "−" : ""
  if digits == 0 { return "\(sign)\(grouped(scaled))" }
  let fraction = String(scaled % Int(unit))
  let padding = String(repeating: "0", count: digits - fraction.count)
  return "\(sign)\(grouped(scaled / Int(unit))).\(padding)\(fraction)"
}

/// Digits in threes: 1,234,567.
package func grouped(_ value: Int) -> String {
  var result = ""
  for (index, digit) in String(value.magnitude).reversed().enumerated() {
    if index > 0 && index % 3 == 0 { result.append(",") }
    result.append(digit)
  }
  return (value < 0 ? "−" : "") + String(result.reversed())
}

/// A share as percent with three significant digits: 0.0045 is "0.450 %".
package func percent(_ share: Double) -> String {
  let value = share * 100
  let digits = abs(value) >= 100 ? 0 : abs(value) >= 10 ? 1 : abs(value) >= 1 ? 2 : 3
  return abs(value) < 0.001 && value != 0 ? "< 0.001 %" : "\(fixed(value, digits)) %"
}

/// Bytes in the largest decimal unit that leaves a number above one.
package func byteSize(_ bytes: Int) -> String {
  var value = Double(bytes)
  for unit in ["B", "kB", "MB", "GB"] {
    if abs(value) < 999.5 { return "\(fixed(value, unit == "B" || abs(value) >= 99.95 ? 0 : 1)) \(unit)" }
    value /= 1000
  }
  return "\(fixed(value, 2)) TB"
}

/// Seconds as a person says them: "0.42 s", "38 s", "3 min 05 s", "2 h 10 min".
package func duration(_ seconds: Double) -> String {
  guard seconds.isFinite, seconds < 1e9 else { return "–" }
  if seconds < 10 { return "\(fixed(seconds, 2)) s" }
  let whole = Int(seconds.rounded())
  if whole < 60 { return "\(whole) s" }
  let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60)
  func two(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
  return hours > 0 ? "\(hours) h \(two(minutes)) min" : "\(minutes) min \(two(rest)) s"
}
