#pragma once
// Runs a program as a user does, and looks at what it prints, writes and returns.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "catch.hpp"

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder of the test's own, and the program run in it.
struct workplace {
  std::filesystem::path folder;

  workplace() {
    std::string name = (std::filesystem::temp_directory_path() / "terrace-example-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    folder = name;
  }
  workplace(const workplace&) = delete;
  ~workplace() { std::filesystem::remove_all(folder); }

  struct outcome {
    int status = -1;
    std::string out, err;
    nlohmann::json value() const { return nlohmann::json::parse(out); }
  };
  outcome run(const std::string& arguments) const {
    const std::string command = "cd " + folder.string() + " && exec '" TERRACE_RUNNER "' " + arguments +
                                " </dev/null >'" + (folder / "out").string() + "' 2>'" +
                                (folder / "err").string() + "'";
    const int ended = std::system(command.c_str());
    return {WIFEXITED(ended) ? WEXITSTATUS(ended) : -1, contents(folder / "out"), contents(folder / "err")};
  }
};

/// The program ended with `status`, one line on standard error that begins with its name, and nothing on standard
/// output.
inline void check_refused(const workplace::outcome& o, const std::string& program, int status,
                          const std::string& says) {
  CAPTURE(o.err);
  CHECK(o.status == status);
  CHECK(o.out.empty());
  REQUIRE_FALSE(o.err.empty());
  CHECK(o.err.find('\n') == o.err.size() - 1);
  CHECK(o.err.rfind(program + ": ", 0) == 0);
  CHECK(o.err.find(says) != std::string::npos);
}
