// Running a kernel from C++: options, global buffers, and a report.
//
//   ascendc_twin::Options options{"modulate", ascendc_twin::KernelType::kAiv, blocks};
//   ascendc_twin::Report report = ascendc_twin::LaunchKernel(
//       options, {{x, bytes, "x", ascendc_twin::Role::kIn}, ...}, [&] { modulate(x, ..., tiling);
//       });
#pragma once

#include <cstring>
#include <sstream>

#include "kernel_operator.h"

namespace ascendc_twin {

struct GlobalArgument {
  void* data;
  uint64_t bytes;
  std::string name;
  Role role;
};

struct CoreReport {
  std::string name;
  std::map<std::string, uint64_t> bytes;
  std::map<std::string, UnitCount> instructions;
  std::map<std::string, double> busy_cycles;  // per pipe
  uint64_t macs;
  double end_cycle;
};

struct Report {
  std::string kernel;
  std::vector<Finding> findings;
  std::map<std::string, uint64_t> unchecked;
  std::vector<CoreReport> cores;
  double cycles = 0;  // until the last core ends, by its pipes and their flags
  bool deadlock = false;

  // One line per finding: kernel, core, call at file:line, rule.
  std::vector<std::string> Lines() const {
    std::vector<std::string> lines;
    for (const Finding& f : findings) {
      std::ostringstream line;
      line << kernel << ": " << f.core << ": " << f.call;
      if (!f.file.empty()) line << " (" << f.file << ":" << f.line << ")";
      line << ": " << f.rule << ": " << f.text;
      if (f.count > 1) line << " [" << f.count << " times]";
      lines.push_back(line.str());
    }
    return lines;
  }
};

inline Report LaunchKernel(const Options& options, const std::vector<GlobalArgument>& arguments,
                           const std::function<void()>& kernel) {
  Launch launch;
  launch.options = options;
  for (const GlobalArgument& argument : arguments) {
    if (argument.data == nullptr || argument.bytes == 0) continue;
    auto buffer = std::make_unique<GlobalBuffer>();
    buffer->role = argument.role;
    const bool written = argument.role == Role::kIn || argument.role == Role::kInOut;
    if (!written) std::memset(argument.data, kPoison, argument.bytes);
    buffer->space.Adopt(argument.name, static_cast<uint8_t*>(argument.data), argument.bytes, true,
                        written);
    launch.buffers.push_back(std::move(buffer));
  }
  Run(launch, kernel);
  Report report;
  report.kernel = options.kernel;
  report.findings = launch.findings;
  report.unchecked = launch.unchecked;
  report.deadlock = launch.abandoned();
  for (auto& core : launch.cores) {
    CoreReport one{core->Name(), core->bytes, core->instructions, {}, core->macs, 0};
    for (int pipe = 0; pipe < kPipes; ++pipe) {
      if (core->pipes[pipe].busy > 0) one.busy_cycles[PipeName(pipe)] = core->pipes[pipe].busy;
      one.end_cycle = std::max(one.end_cycle, core->pipes[pipe].time);
    }
    report.cycles = std::max(report.cycles, one.end_cycle);
    report.cores.push_back(std::move(one));
  }
  return report;
}

inline std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out + "\"";
}

inline std::string ToJson(const Report& report) {
  std::ostringstream out;
  out.precision(12);
  auto list = [&](auto& items, auto&& each) {
    bool first = true;
    for (auto& item : items) {
      if (!first) out << ",";
      first = false;
      each(item);
    }
  };
  out << "{\"kernel\":" << Quoted(report.kernel) << ",\"cycles\":" << report.cycles
      << ",\"deadlock\":" << (report.deadlock ? "true" : "false") << ",\"lines\":[";
  const auto lines = report.Lines();
  list(lines, [&](const std::string& line) { out << Quoted(line); });
  out << "],\"findings\":[";
  list(report.findings, [&](const Finding& f) {
    out << "{\"rule\":" << Quoted(f.rule) << ",\"core\":" << Quoted(f.core)
        << ",\"call\":" << Quoted(f.call) << ",\"file\":" << Quoted(f.file)
        << ",\"line\":" << f.line << ",\"text\":" << Quoted(f.text) << ",\"count\":" << f.count
        << "}";
  });
  out << "],\"unchecked\":{";
  list(report.unchecked, [&](auto& item) { out << Quoted(item.first) << ":" << item.second; });
  out << "},\"cores\":[";
  list(report.cores, [&](const CoreReport& core) {
    out << "{\"name\":" << Quoted(core.name) << ",\"macs\":" << core.macs
        << ",\"end_cycle\":" << core.end_cycle << ",\"bytes\":{";
    list(core.bytes, [&](auto& item) { out << Quoted(item.first) << ":" << item.second; });
    out << "},\"busy_cycles\":{";
    list(core.busy_cycles, [&](auto& item) { out << Quoted(item.first) << ":" << item.second; });
    out << "},\"instructions\":{";
    list(core.instructions, [&](auto& item) {
      out << Quoted(item.first) << ":[" << item.second.instructions << "," << item.second.elements
          << "]";
    });
    out << "}}";
  });
  out << "]}";
  return out.str();
}

}  // namespace ascendc_twin
