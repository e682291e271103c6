# Fails where one of OBJECTS defines a weak symbol. The linker keeps one definition of such a name among all instruction
# sets, and an old processor could then run one that it lacks.
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --defined-only -C "${object}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [uVvWw] [^\n]*" weak "${symbols}")
  if(weak)
    string(JOIN "\n  " names ${weak})
    message(FATAL_ERROR "${object} defines weak symbols; give them internal linkage:\n  ${names}")
  endif()
endforeach()
