import Glibc

/// The relative error of every linear as an SVG: decoder layers to the right, the error upwards on a
/// logarithmic axis, one line per kind of linear; or one line for the means of layers.
package struct ErrorChart {
  /// Linears of one kind, the last part of their names.
  struct Series {
    let kind: String
    var points: [Point]
  }

  struct Point {
    let layer: Int
    let error: Double
    let title: String
  }

  /// Lines are told apart by this many colours; a further line takes the first colour again, dashed.
  static let colours = 8

  let series: [Series]
  private let axis: LogarithmicAxis
  private let lastLayer: Int

  /// Plot area inside a picture of 760 × 420.
  private let left = 92.0
  private let right = 744.0
  private let top = 16.0
  private let bottom = 358.0

  /// One line, the mean error of each layer.
  /// - Parameters:
  ///   - errorPerLayer: nil where there is none yet
  ///   - layerCount: what the axis goes to, if there are more layers than errors
  /// - Returns: nil if there is nothing to draw: no error above zero.
  package init?(errorPerLayer: [Double?], layerCount: Int) {
    let points = errorPerLayer.enumerated().compactMap { layer, error -> Point? in
      guard let error, error.isFinite, error > 0 else { return nil }
      return Point(layer: layer, error: error, title: "layer \(layer), mean error \(percent(error))")
    }
    guard let axis = LogarithmicAxis(covering: points.map(\.error)) else { return nil }
    self.axis = axis
    lastLayer = max(layerCount, errorPerLayer.count) - 1
    series = [Series(kind: "mean of the layer", points: points)]
  }

  /// nil if there is nothing to draw: no error above zero.
  init?(linears: [Report.Linear]) {
    let drawable = Self.meansOfExperts(linears.filter { $0.relativeError.isFinite && $0.relativeError > 0 })
    guard let axis = LogarithmicAxis(covering: drawable.map(\.relativeError)) else { return nil }
    self.axis = axis
    lastLayer = drawable.reduce(0) { max($0, $1.layer) }
    var kinds: [String] = []
    var points: [String: [Point]] = [:]
    for linear in drawable {
      let kind = linear.name.split(separator: ".").last.map(String.init) ?? linear.name
      if points[kind] == nil { kinds.append(kind) }
      let title = "\(linear.name)\nlayer \(linear.layer), error \(percent(linear.relativeError))"
      points[kind, default: []].append(
        Point(layer: linear.layer, error: linear.relativeError, title: title))
    }
    series = kinds.map { kind in
      Series(kind: kind, points: (points[kind] ?? []).sorted { $0.layer < $1.layer })
    }
  }

  /// The linears, those of a layer's experts as one of each kind with their mean error.
  private static func meansOfExperts(_ linears: [Report.Linear]) -> [Report.Linear] {
    var errors: [String: [Double]] = [:]
    func group(_ linear: Report.Linear) -> String? {
      guard linear.expert != nil, let kind = linear.name.split(separator: ".").last else { return nil }
      return "experts of layer \(linear.layer), mean.\(kind) of experts"
    }
    for linear in linears {
      if let group = group(linear) { errors[group, default: []].append(linear.relativeError) }
    }
    return linears.compactMap { linear in
      guard let group = group(linear) else { return linear }
      guard let all = errors.removeValue(forKey: group) else { return nil }
      var mean = linear
      mean.name = group
      mean.relativeError = all.reduce(0, +) / Double(all.count)
      return mean
    }
  }

  package var svg: String {
    """
    <svg viewBox="0 0 760 420" role="img" aria-label="Relative error per decoder layer and linear">
    \(gridLines)\(layerTicks)
    <text class="label" x="\(fixed((left + right) / 2, 1))" y="412" text-anchor="middle">decoder layer</text>
    <text class="label" transform="translate(18 \(fixed((top + bottom) / 2, 1))) rotate(-90)" \
    text-anchor="middle">relative error</text>
    \(series.enumerated().map { line($0.element, index: $0.offset) }.joined(separator: "\n"))
    </svg>
    """
  }

  private var gridLines: String {
    axis.ticks.map { tick in
      let y = fixed(self.y(tick), 1)
      return """
        <line class="grid" x1="\(left)" x2="\(right)" y1="\(y)" y2="\(y)"/>\
        <text class="tick" x="\(left - 8)" y="\(y)" dy=".35em" text-anchor="end">\(axis.label(tick))</text>

        """
    }.joined()
  }

  private var layerTicks: String {
    let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500]
    let step = steps.first { lastLayer / $0 <= 10 } ?? 1000
    return stride(from: 0, through: lastLayer, by: step).map { layer in
      let x = fixed(self.x(layer), 1)
      return """
        <line class="grid" x1="\(x)" x2="\(x)" y1="\(bottom)" y2="\(bottom + 5)"/>\
        <text class="tick" x="\(x)" y="\(bottom + 22)" text-anchor="middle">\(layer)</text>

        """
    }.joined()
  }

  private func line(_ series: Series, index: Int) -> String {
    let path = series.points.enumerated().map { position, point in
      "\(position == 0 ? "M" : "L")\(fixed(x(point.layer), 1)) \(fixed(y(point.error), 1))"
    }.joined()
    let dots = series.points.map { point in
      """
      <circle cx="\(fixed(x(point.layer), 1))" cy="\(fixed(y(point.error), 1))" r="3.2">\
      <title>\(escaped(point.title))</title></circle>
      """
    }.joined()
    return """
      <g class="series \(Self.colourClass(index))" id="series-\(index)"><path d="\(path)"/>\(dots)</g>
      """
  }

  /// The class that gives line number `index` its colour, in the chart and in the legend.
  static func colourClass(_ index: Int) -> String {
    "colour-\(index % colours)" + (index >= colours ? " dashed" : "")
  }

  private func x(_ layer: Int) -> Double {
    // One layer alone stands in the middle.
    guard lastLayer > 0 else { return (left + right) / 2 }
    return left + 10 + Double(layer) / Double(lastLayer) * (right - left - 20)
  }

  private func y(_ error: Double) -> Double {
    bottom - axis.position(error) * (bottom - top)
  }
}

/// A logarithmic axis whose ends and ticks are 1, 2 or 5 times a power of ten.
struct LogarithmicAxis {
  let ticks: [Double]

  /// nil without values, all of which are above zero.
  init?(covering values: [Double]) {
    guard let smallest = values.min(), let largest = values.max() else { return nil }
    let first = Int(log10(smallest).rounded(.down))
    let last = Int(log10(largest).rounded(.up))
    // Three ticks a decade as long as they stay readable.
    let mantissas: [Double] = last - first <= 3 ? [1, 2, 5] : [1]
    var candidates = (first...max(last, first)).flatMap { exponent in
      mantissas.map { $0 * pow(10, Double(exponent)) }
    }
    candidates.append(pow(10, Double(last + 1)))
    let start = candidates.lastIndex { $0 <= smallest * (1 + 1e-9) } ?? 0
    let end = candidates.firstIndex { $0 >= largest * (1 - 1e-9) && $0 > candidates[start] }
    ticks = Array(candidates[start...(end ?? candidates.count - 1)])
  }

  /// Where `value` stands between the ends, from 0 to 1.
  func position(_ value: Double) -> Double {
    guard let first = ticks.first, let last = ticks.last, last > first else { return 0.5 }
    return log(value / first) / log(last / first)
  }

  /// A tick as percent, with no more digits than it has.
  func label(_ tick: Double) -> String {
    let value = tick * 100
    let digits = max(0, -Int((log10(value) + 1e-9).rounded(.down)))
    return digits > 6 ? "\(value) %" : "\(fixed(value, digits)) %"
  }
}
